/* Drives the page of a deployment: node drive_page.mjs NODE_MODULES CHROMIUM URL PROMPTS STOP PICTURES
   PROMPTS is a list in JSON; with STOP the first answer is stopped once it has begun. PICTURES is a list
   in JSON, for each prompt a file, "camera" or "". */
import { createRequire } from "node:module";

const [modules, executablePath, url, prompts, stop, pictures] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/`)("playwright-core");
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
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
const shown = () => page.waitForFunction(() => !document.getElementById("preview").hidden);
for (const [i, prompt] of JSON.parse(prompts).entries()) {
  const picture = JSON.parse(pictures)[i];
  if (picture === "camera") {
    await page.click("#camera");
    await page.waitForFunction(() => document.getElementById("camera").textContent === "Take");
    await page.click("#camera");
    await shown();
  } else if (picture) {
    await page.setInputFiles("#file", picture);
    await page.waitForFunction((name) => document.getElementById("state").textContent.includes(name), picture.split("/").pop());
  }
  await page.fill("#prompt", prompt);
  await page.click("#send");
  const during = await page.textContent("#state");
  if (stop && !turns.length) {
    await page.waitForFunction(() => document.querySelector(".answer:last-child").textContent);
    await page.click("#stop");
  }
  await page.waitForFunction(settled, null, { timeout: 200000 });
  const answer = await page.textContent(".answer:last-child");
  const size = await page.evaluate(async () => {
    const image = document.querySelector(".prompt:nth-last-child(2) img");
    await image?.decode();
    return image && [image.naturalHeight, image.naturalWidth];
  });
  turns.push({ during, answer, state: await page.textContent("#state"), picture: size });
}
await page.click("#reset", { timeout: 1000 }).catch(() => undefined);
const left = await page.textContent("#turns");
console.log(JSON.stringify({ states, isolated, turns, left, requests: [...requests] }));
await browser.close();
