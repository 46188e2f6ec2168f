/* Drives the page of a deployment: node drive_page.mjs NODE_MODULES CHROMIUM URL PROMPTS STOP
   PROMPTS is a list in JSON; with STOP the first answer is stopped once it has begun. */
import { createRequire } from "node:module";

const [modules, executablePath, url, prompts, stop] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/`)("playwright-core");
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath, args });
const page = await browser.newPage();
const states = [], requests = new Set();
page.on("pageerror", (error) => states.push(String(error)));
page.on("request", (request) => requests.add(new URL(request.url()).pathname));
await page.exposeFunction("note", (state) => states.push(state));
await page.addInitScript(() => {
  addEventListener("DOMContentLoaded", () =>
    new MutationObserver(() => note(document.getElementById("state").textContent))
      .observe(document.getElementById("state"), { childList: true, characterData: true }));
});
await page.goto(url);
const settled = () =>
  !document.getElementById("send").disabled || /Failed/.test(document.getElementById("state").textContent);
await page.waitForFunction(settled, null, { timeout: 200000 });
const isolated = await page.evaluate(() => crossOriginIsolated);
const turns = [];
for (const prompt of JSON.parse(prompts)) {
  await page.fill("#prompt", prompt);
  await page.click("#send");
  const during = await page.textContent("#state");
  if (stop && !turns.length) {
    await page.waitForFunction(() => document.querySelector(".answer:last-child").textContent);
    await page.click("#stop");
  }
  await page.waitForFunction(settled, null, { timeout: 200000 });
  const answer = await page.textContent(".answer:last-child");
  turns.push({ during, answer, state: await page.textContent("#state") });
}
await page.click("#reset", { timeout: 1000 }).catch(() => undefined);
const left = await page.textContent("#turns");
console.log(JSON.stringify({ states, isolated, turns, left, requests: [...requests] }));
await browser.close();
