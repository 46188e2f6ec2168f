/* Runs the model outside the page: downloads it once, and answers without blocking the page. */
import { Tokenizer } from "./node_modules/@huggingface/tokenizers/dist/tokenizers.mjs";
import { Model } from "./model.mjs";

const DIST = new URL("./node_modules/onnxruntime-web/dist/", self.location.href).href;
const BUNDLES = { wasm: "ort.wasm.bundle.min.mjs", webgpu: "ort.webgpu.bundle.min.mjs" };
const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
let model;

self.onmessage = async ({ data }) => {
  try {
    await (data.device ? start(data.device) : answer(data.prompt, data.most));
  } catch (error) {
    self.postMessage({ state: `Failed: ${error.message ?? error}`, ready: Boolean(model) });
  }
};

async function start(device) {
  if (!BUNDLES[device]) throw new Error(`no device ${device}; one of ${Object.keys(BUNDLES)}`);
  if (device === "webgpu" && !navigator.gpu) throw new Error("this browser has no WebGPU");
  const ort = await import(DIST + BUNDLES[device]);
  ort.env.wasm.wasmPaths = DIST;
  const json = async (name) => (await fetched(name)).json();
  const app = await json("app.json");
  const files = await Promise.all(["model/tokenizer.json", "model/tokenizer_config.json"].map(json));
  const cache = await openCache(app.version);
  const graph = await download(cache, app.model);
  const weights = await download(cache, `${app.model}.data`, true);
  self.postMessage({ state: "Preparing the model…", progress: 1 });
  const session = await ort.InferenceSession.create(graph, {
    ...Model.options(app),
    executionProviders: [device],
    externalData: [{ path: `${app.model.split("/").pop()}.data`, data: weights }],
  });
  model = new Model(ort, session, Tokenizer, app, ...files);
  const threads = self.crossOriginIsolated ? "" : " on one thread (serve with COOP and COEP for more)";
  self.postMessage({ state: `Ready: ${device}${threads}`, ready: true });
}

async function answer(prompt, most) {
  const begin = performance.now();
  const tokens = [];
  let shown = 0, first;
  for await (const token of model.tokens(model.encode(prompt), most)) {
    first ??= performance.now();
    tokens.push(token);
    if (model.ends(token)) break;
    const text = model.tokenizer.decode(tokens, { skip_special_tokens: true });
    if (text.endsWith("\ufffd")) continue; // an incomplete character
    self.postMessage({ piece: text.slice(shown) });
    shown = text.length;
  }
  const shownTokens = tokens.filter((token) => !model.ends(token));
  if (shownTokens.length) {
    const text = model.tokenizer.decode(shownTokens, { skip_special_tokens: true });
    self.postMessage({ piece: text.slice(shown) });
  }
  const speed = ((tokens.length - 1) / (performance.now() - first)) * 1000;
  const wait = ((first - begin) / 1000).toFixed(1);
  const state = `${tokens.length} tokens, the first after ${wait} s, then ${speed.toFixed(1)} a second`;
  self.postMessage({ state, tokens, ready: true });
}

async function fetched(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response;
}

/* The browser's cache for this version of the model, so that it is downloaded once; deletes those of
   other versions. Browsers have no cache for pages of plain http. */
async function openCache(version) {
  const page = `edgetie ${self.location.pathname} `;
  const names = (await self.caches?.keys().catch(() => [])) ?? [];
  const old = names.filter((name) => name.startsWith(page) && name !== page + version);
  await Promise.all(old.map((name) => self.caches.delete(name)));
  return self.caches?.open(page + version).catch(() => undefined);
}

/* Downloads a file or reads it from the cache, and reports progress if asked. */
async function download(cache, name, report = false) {
  const cached = await cache?.match(name);
  const response = cached ?? (await fetched(name));
  const total = +response.headers.get("content-length");
  const parts = [];
  let loaded = 0;
  for await (const part of response.body) {
    parts.push(part);
    loaded += part.length;
    if (report) {
      const state = `${cached ? "Reading" : "Downloading"} ${megabytes(loaded)} of ${megabytes(total)} MB`;
      self.postMessage({ state, progress: loaded / total });
    }
  }
  const whole = new Uint8Array(loaded);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  if (!cached) {
    const headers = { "content-length": String(loaded) };
    await cache?.put(name, new Response(whole, { headers })).catch(() => undefined); // no space: not cached
  }
  return whole;
}
