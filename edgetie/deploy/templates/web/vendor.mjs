/* Copies the files that the page uses from node_modules/ to lib/: node vendor.mjs [webgpu] */
import { copyFileSync, mkdirSync } from "node:fs";
import { basename } from "node:path";

const FILES = {
  wasm: ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"],
  webgpu: ["ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"],
};
const runtimes = ["wasm", ...process.argv.slice(2)].flatMap((device) => FILES[device]);
const paths = runtimes.map((name) => `onnxruntime-web/dist/${name}`);
mkdirSync(new URL("lib/", import.meta.url), { recursive: true });
for (const path of [...paths, "@huggingface/tokenizers/dist/tokenizers.min.mjs"]) {
  const local = (name) => new URL(name, import.meta.url);
  copyFileSync(local(`node_modules/${path}`), local(`lib/${basename(path)}`));
}
