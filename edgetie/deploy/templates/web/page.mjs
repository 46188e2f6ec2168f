/* The page: shows the progress of the worker, sends it prompts and pictures and displays the conversation.
   ?device=webgpu asks for the GPU, ?tokens=N for longer answers. */
const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const options = { max_new_tokens: +(query.get("tokens") ?? 256) };
const worker = new Worker("worker.mjs", { type: "module" });
let answer, images, picture, camera;

function show(state, ready = false) {
  $("state").textContent = state;
  $("send").disabled = $("reset").disabled = $("camera").disabled = $("file").disabled = !ready;
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
  if (data.images) {
    images = data.images;
    $("picture").hidden = false;
    $("prompt").value = images.required ? "" : "What is in this image?";
  }
  if (data.state) show(data.state, data.ready);
  if (data.ready) $("progress").hidden = true;
};
worker.onerror = (event) => show(`Failed: ${event.message}`);
worker.postMessage({ device: query.get("device") ?? "wasm" });

$("form").onsubmit = (event) => {
  event.preventDefault();
  if (images?.required && !picture) {
    return show("This model writes the text of an image: choose a file, or use the camera", true);
  }
  const prompt = $("prompt").value;
  const turn = add("prompt", prompt);
  if (picture) turn.prepend(Object.assign(new Image(), { src: $("preview").src, alt: "" }));
  answer = add("answer", "");
  $("prompt").value = "";
  show("Reading…");
  worker.postMessage({ prompt, options: { ...options, image: picture?.pixels } });
  look(undefined);
};

/* Shows a picture, which the next prompt is about: an image or a video, or nothing. */
function look(source, width, height) {
  picture = undefined;
  $("preview").hidden = !source;
  if (!source) {
    $("file").value = "";
    return;
  }
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // behind transparent pixels
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  picture = { pixels: context.getImageData(0, 0, width, height) };
  $("preview").src = canvas.toDataURL("image/jpeg");
}

$("file").onchange = async ({ target }) => {
  const [file] = target.files;
  if (!file) return look(undefined);
  try {
    // turned as its metadata says, its colours as they are
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    look(bitmap, bitmap.width, bitmap.height);
    show(file.name, true);
  } catch {
    look(undefined);
    show(`${file.name}: not an image that this browser reads, or damaged`, true);
  }
};

/* The first click starts the camera, the second one takes the picture. */
$("camera").onclick = async () => {
  const video = $("video");
  if (camera) {
    look(video, video.videoWidth, video.videoHeight);
    camera.getTracks().forEach((track) => track.stop());
    camera = undefined;
  } else {
    look(undefined);
    try {
      camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      return show(`The camera cannot be used: ${error.message}`, true);
    }
    video.srcObject = camera;
    await video.play();
  }
  video.hidden = !camera;
  $("camera").textContent = camera ? "Take" : "Camera";
};
$("stop").onclick = () => worker.postMessage({ stop: true });
$("reset").onclick = () => {
  $("turns").textContent = "";
  show("A new conversation", true);
  worker.postMessage({ reset: true });
};
