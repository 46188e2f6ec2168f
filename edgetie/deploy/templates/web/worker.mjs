/* Runs the model outside the page: downloads it once, and answers without blocking the page. */
import { Tokenizer } from "./lib/tokenizers.min.mjs";
import { ImageReader } from "./images.mjs";
import { Model } from "./model.mjs";

const RUNTIMES = { wasm: "./lib/ort.wasm.bundle.min.mjs", webgpu: "./lib/ort.webgpu.bundle.min.mjs" };
const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
let model, stopped;

self.onmessage = async ({ data }) => {
  try {
    if (data.stop) stopped = true;
    else if (data.reset) model.reset();
    else await (data.device ? start(data.device) : answer(data.prompt, data.options));
  } catch (error) {
    self.postMessage({ state: `Failed: ${error.message ?? error}`, ready: Boolean(model) });
  }
};

async function start(device) {
  if (!RUNTIMES[device]) throw new Error(`no device ${device}; one of ${Object.keys(RUNTIMES)}`);
  if (device === "webgpu" && !navigator.gpu) throw new Error("this browser has no WebGPU");
  const ort = await import(RUNTIMES[device]).catch(() => {
    throw new Error(`${RUNTIMES[device]} is missing; npm run vendor -- ${device} copies it`);
  });
  const json = async (name) => (await fetched(name)).json();
  const app = await json("app.json");
  const files = await Promise.all(["model/tokenizer.json", "model/tokenizer_config.json"].map(json));
  const [session, images] = await openGraphs(ort, await openCache(app.version), app, device);
  model = new Model(ort, session, Tokenizer, app, ...files, images);
  const threads = self.crossOriginIsolated ? "" : " on one thread (serve with COOP and COEP for more)";
  self.postMessage({ state: `Ready: ${device}${threads}`, ready: true, images: app.images });
}

/* The session of the decoder, and a reader of images if the model reads them. */
async function openGraphs(ort, cache, app, device) {
  const weights = await download(cache, app.weights, app.version, true);
  self.postMessage({ state: "Preparing the model…", progress: 1 });
  const external = [{ path: app.weights.split("/").pop(), data: weights }];
  const open = async (name, externalData) =>
    ort.InferenceSession.create(await download(cache, name, app.version), {
      ...Model.options(app),
      executionProviders: [device],
      externalData,
    });
  const { images } = app;
  const reader =
    images &&
    new ImageReader(ort, await open(images.processor, []), await open(images.encoder, external), images);
  return [await open(app.model, external), reader];
}

async function answer(prompt, options) {
  const begin = performance.now();
  let first;
  const describe = () => {
    const count = model.written.length;
    const speed = ((count - 1) / (performance.now() - first)) * 1000;
    const rate = count > 1 ? `, then ${speed.toFixed(1)} a second` : "";
    const wait = ((first - begin) / 1000).toFixed(1);
    return `${model.read} tokens read, ${count} written, the first after ${wait} s${rate}`;
  };
  stopped = false;
  for await (const piece of model.answer(prompt, options)) {
    first ??= performance.now();
    self.postMessage({ piece, state: describe() });
    await messages();
    if (stopped) break;
  }
  self.postMessage({ state: describe(), ready: true });
}

/* Lets the worker receive messages, such as that to stop. */
function messages() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = resolve;
    port2.postMessage(undefined);
  });
}

async function fetched(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name.split("?")[0]}: ${response.status} ${response.statusText}`);
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

/* Downloads a file of this version or reads it from the cache, and reports progress if asked. */
async function download(cache, name, version, report = false) {
  const cached = await cache?.match(name);
  const response = cached ?? (await fetched(`${name}?${version}`));
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
