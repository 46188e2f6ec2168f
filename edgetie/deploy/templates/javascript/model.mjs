/* A language model and a conversation with it: the part to copy into an app. Expects the module of
   onnxruntime-node or onnxruntime-web as `ort`, and the class Tokenizer of @huggingface/tokenizers. */
import { Sampler } from "./sampling.mjs";

export class Model {
  turns = []; // of the conversation: prompts and answers
  read = 0; // tokens read for the last answer; the cache had those before them
  written = []; // tokens of the last answer, the one that ended it included
  #cached = []; // tokens whose keys and values are in the cache

  /** `app`, `tokenizer`, `config`: app.json, tokenizer.json and tokenizer_config.json, parsed. */
  constructor(ort, session, Tokenizer, app, tokenizer, config) {
    Object.assign(this, { ort, session, app, tokenizer: new Tokenizer(tokenizer, config) });
    this.cache = this.#emptyCache();
  }

  /** The options of a session, except the device. */
  static options(app) {
    const level = app.optimize ? {} : { graphOptimizationLevel: "disabled" };
    return { enableMemPattern: false, ...level };
  }

  /** Begins a new conversation. */
  reset() {
    this.turns = [];
  }

  /** Streams the text of the answer to a prompt, which continues the conversation. An app stops an
      answer by leaving the loop over it. The oldest turns are forgotten if the conversation fills
      three quarters of what the model accepts. `options`: max_new_tokens, stop_strings, and those of
      Sampler; by default as the model's settings say. */
  async *answer(prompt, options = {}) {
    const { max_new_tokens = 256, stop_strings = this.app.stop_strings, ...sampling } = options;
    if (!(max_new_tokens >= 1)) throw new Error("max_new_tokens must be 1 or more");
    const sampler = new Sampler({ ...this.app.sampling, ...sampling });
    const stops = stop_strings.filter(Boolean);
    const history = this.app.next_prompt === null ? [] : this.turns;
    const turn = { prompt: this.app.trim_prompt ? prompt.trim() : prompt, answer: "" };
    let turns = [...history, turn], ids;
    const longest = this.app.max_positions ?? Infinity;
    while ((ids = this.#encode(turns)).length > (longest * 3) / 4 && turns.length > 1) turns = turns.slice(1);
    if (!ids.length) throw new Error("the prompt has no tokens");
    if (ids.length > longest) {
      throw new Error(`the prompt has ${ids.length} tokens, the model takes ${longest}`);
    }
    this.turns = turns;
    this.written = [];
    const tokens = [];
    let shown = 0;
    const show = (text) => {
      turn.answer = this.app.trim_answer ? text.trim() : text;
      const piece = text.slice(shown);
      shown = text.length;
      return piece;
    };
    const decode = () =>
      tokens.length ? this.tokenizer.decode(tokens, { skip_special_tokens: true }) : "";
    for await (const token of this.#generate(ids, max_new_tokens, sampler)) {
      this.written.push(token);
      if (this.app.stop_tokens.includes(token)) break;
      tokens.push(token);
      const [text, stopped] = cut(decode(), stops);
      yield show(text);
      if (stopped) return;
    }
    yield show(decode());
  }

  /* Token ids of a conversation as the chat template writes it. */
  #encode(turns) {
    const { app } = this, last = turns.at(-1);
    let text = app.before_prompt;
    for (const { prompt, answer } of turns.slice(0, -1)) {
      text += prompt + app.before_answer + answer + app.next_prompt;
    }
    text += last.prompt + app.after_prompt;
    const { ids } = this.tokenizer.encode(text, { add_special_tokens: false });
    return [...app.prefix, ...ids, ...app.suffix];
  }

  /* Streams the tokens that continue `ids`, of which only what the cache lacks is read. */
  async *#generate(ids, most, sampler) {
    const cached = this.#cached;
    let kept = 0;
    while (kept < ids.length - 1 && cached[kept] === ids[kept]) kept++;
    cached.length = kept; // the attention mask hides the rest of the cache until it is overwritten
    let fresh = ids.slice(kept);
    this.read = fresh.length;
    ids.forEach((token) => sampler.seen.add(token));
    const longest = Math.min(ids.length + most, this.app.max_positions ?? Infinity);
    for (let count = 0; count < most; count++) {
      const token = sampler.select(await this.#run(fresh));
      yield token;
      if (cached.length === longest) return;
      sampler.seen.add(token);
      fresh = [token];
    }
  }

  /* Reads tokens; returns the logits of the next one. */
  async #run(fresh) {
    const first = this.#cached.length, end = first + fresh.length;
    const values = {
      input_ids: () => fresh,
      attention_mask: () => Array(end).fill(1),
      position_ids: () => fresh.map((_, i) => first + i),
    };
    const feeds = { ...this.cache };
    for (const name of this.app.inputs) feeds[name] = this.#int64(values[name]());
    const results = await this.session.run(feeds);
    for (const name of this.app.cache) {
      this.cache[`past_key_values.${name}`].dispose?.();
      this.cache[`past_key_values.${name}`] = results[`present.${name}`];
    }
    this.#cached.push(...fresh);
    const logits = results.logits.data.slice(-this.app.vocabulary);
    results.logits.dispose?.();
    return logits;
  }

  #int64(values) {
    return new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  }

  #emptyCache() {
    const { cache, cache_heads: heads, cache_size: size, cache_dtype: dtype } = this.app;
    const [type, Values] = { float: ["float32", Float32Array], int8: ["int8", Int8Array] }[dtype];
    const empty = (name) => [
      `past_key_values.${name}`,
      new this.ort.Tensor(type, new Values(0), [1, heads, 0, size]),
    ];
    return Object.fromEntries(cache.map(empty));
  }
}

/* Cuts a text at a stop string, or at what may become one or is not yet a whole character. */
function cut(text, stops) {
  const places = stops.map((stop) => text.indexOf(stop)).filter((place) => place >= 0);
  if (places.length) return [text.slice(0, Math.min(...places)), true];
  text = text.replace(/\ufffd+$/, "");
  let pending = 0;
  for (const stop of stops)
    for (let size = 1; size < stop.length; size++)
      if (text.endsWith(stop.slice(0, size))) pending = Math.max(pending, size);
  return [text.slice(0, text.length - pending), false];
}
