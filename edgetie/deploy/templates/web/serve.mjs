/* Serves this folder: node serve.mjs [port]. The two headers let the page use several threads. */
import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize, sep } from "node:path";
import { pipeline } from "node:stream";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("./", import.meta.url));
const types = { ".html": "text/html", ".mjs": "text/javascript", ".js": "text/javascript",
  ".json": "application/json", ".wasm": "application/wasm" };

const server = createServer((request, response) => {
  let file, stat, versioned;
  try {
    const url = new URL(request.url, "http://localhost");
    const path = decodeURIComponent(url.pathname);
    versioned = Boolean(url.search) && path.includes("/model/"); // another version has another address
    file = normalize(join(root, path.endsWith("/") ? `${path}index.html` : path));
    if (file.startsWith(root.endsWith(sep) ? root : root + sep)) stat = statSync(file);
  } catch {
    // no such file, or not a path
  }
  if (!stat?.isFile()) {
    response.writeHead(404).end("not found\n");
    return;
  }
  response.writeHead(200, {
    "content-type": types[extname(file)] ?? "application/octet-stream",
    "content-length": stat.size,
    "cache-control": versioned ? "public, max-age=31536000, immutable" : "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
  });
  pipeline(createReadStream(file), response, () => {}); // closes the file if the page goes
});
server.listen(+(process.argv[2] ?? 8080), "127.0.0.1", () =>
  console.log(`http://127.0.0.1:${server.address().port}/`));
