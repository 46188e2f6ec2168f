/* The page: shows the progress of the worker, sends it prompts and displays its answers.
   ?device=webgpu asks for the GPU, ?tokens=N for longer answers. */
const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const worker = new Worker("worker.mjs", { type: "module" });

worker.onmessage = ({ data }) => {
  if (data.progress !== undefined) $("progress").value = data.progress;
  if (data.state) $("state").textContent = data.state;
  if (data.piece) $("answer").textContent += data.piece;
  if (data.tokens) $("answer").dataset.tokens = data.tokens.join(" ");
  if (data.ready) {
    $("send").disabled = false;
    $("progress").hidden = true;
  }
};
worker.onerror = (event) => ($("state").textContent = `Failed: ${event.message}`);
worker.postMessage({ device: query.get("device") ?? "wasm" });

$("form").onsubmit = (event) => {
  event.preventDefault();
  $("answer").textContent = "";
  $("send").disabled = true;
  worker.postMessage({ prompt: $("prompt").value, most: +(query.get("tokens") ?? 128) });
};
