/* Drives the page of a deployment: node drive_page.mjs NODE_MODULES CHROMIUM URL PROMPT */
import { createRequire } from "node:module";

const [modules, executablePath, url, prompt] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/`)("playwright-core");
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath, args });
const page = await browser.newPage();
const states = [], pieces = new Set();
page.on("pageerror", (error) => states.push(String(error)));
await page.exposeFunction("note", (state, answer) => (states.push(state), pieces.add(answer)));
await page.addInitScript(() => {
  addEventListener("DOMContentLoaded", () =>
    new MutationObserver(() =>
      note(document.getElementById("state").textContent, document.getElementById("answer").textContent),
    ).observe(document.body, { childList: true, subtree: true, characterData: true }));
});
await page.goto(url);
const settled = () =>
  !document.getElementById("send").disabled || /Failed/.test(document.getElementById("state").textContent);
await page.waitForFunction(settled, null, { timeout: 200000 });
const isolated = await page.evaluate(() => crossOriginIsolated);
let tokens = "";
if (prompt) {
  await page.fill("#prompt", prompt);
  await page.click("#send");
  await page.waitForFunction(() => document.getElementById("answer").dataset.tokens, null, { timeout: 200000 });
  tokens = await page.getAttribute("#answer", "data-tokens");
}
const answer = await page.textContent("#answer");
console.log(JSON.stringify({ states, isolated, tokens, answer, pieces: pieces.size }));
await browser.close();
