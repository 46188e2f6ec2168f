/* The page: shows the progress of the worker, sends it prompts and displays the conversation.
   ?device=webgpu asks for the GPU, ?tokens=N for longer answers. */
const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const options = { max_new_tokens: +(query.get("tokens") ?? 256) };
const worker = new Worker("worker.mjs", { type: "module" });
let answer;

function show(state, ready = false) {
  $("state").textContent = state;
  $("send").disabled = $("reset").disabled = !ready;
  $("stop").disabled = ready || !answer;
}

function add(kind, text) {
  const turn = document.createElement("p");
  turn.className = kind;
  turn.textContent = text;
  return $("turns").appendChild(turn);
}

worker.onmessage = ({ data }) => {
  if (data.progress !== undefined) $("progress").value = data.progress;
  if (data.piece) answer.textContent += data.piece;
  if (data.state) show(data.state, data.ready);
  if (data.ready) $("progress").hidden = true;
};
worker.onerror = (event) => show(`Failed: ${event.message}`);
worker.postMessage({ device: query.get("device") ?? "wasm" });

$("form").onsubmit = (event) => {
  event.preventDefault();
  const prompt = $("prompt").value;
  add("prompt", prompt);
  answer = add("answer", "");
  $("prompt").value = "";
  show("Reading…");
  worker.postMessage({ prompt, options });
};
$("stop").onclick = () => worker.postMessage({ stop: true });
$("reset").onclick = () => {
  $("turns").textContent = "";
  show("A new conversation", true);
  worker.postMessage({ reset: true });
};
