/* A language model and a conversation with it: the part to copy into an app. Expects the module of
   onnxruntime-node or onnxruntime-web as `ort`, and the class Tokenizer of @huggingface/tokenizers. */
import { imagePositions } from "./images.mjs";
import { Sampler } from "./sampling.mjs";

export class Model {
  turns = []; // of the conversation: prompts, their images and answers
  read = 0; // tokens read for the last answer; the cache had those before them
  written = []; // tokens of the last answer, the one that ended it included
  #cached = []; // tokens, or images, whose keys and values are in the cache
  #keys = []; // those of the prompt
  #feeds = {}; // what the decoder reads of images: tensors, or embeddings of all
  #positions = []; // of the prompt's tokens, for each axis, if there are several

  /** `app`, `tokenizer`, `config`: app.json, tokenizer.json and tokenizer_config.json, parsed.
      `images`: an ImageReader, if the model reads images. */
  constructor(ort, session, Tokenizer, app, tokenizer, config, images) {
    Object.assign(this, { ort, session, app, images, tokenizer: new Tokenizer(tokenizer, config) });
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
      three quarters of what the model accepts. `options`: max_new_tokens, stop_strings, image (an
      ImageData that this prompt and those that follow are about), and those of Sampler; by default as
      the model's settings say. */
  async *answer(prompt, options = {}) {
    const { max_new_tokens = 256, stop_strings = this.app.stop_strings, image, ...sampling } = options;
    if (!(max_new_tokens >= 1)) throw new Error("max_new_tokens must be 1 or more");
    const sampler = new Sampler({ ...this.app.sampling, ...sampling });
    const stops = stop_strings.filter(Boolean);
    const history = this.app.next_prompt === null ? [] : this.turns;
    const turn = { prompt: this.app.trim_prompt ? prompt.trim() : prompt, answer: "" };
    if (image && !this.images) throw new Error("the model reads no images");
    if (!image && this.app.images?.required) {
      throw new Error("the model writes the text of an image; give it one");
    }
    if (image) turn.image = await this.images.read(image);
    let turns = [...history, turn], ids;
    const longest = this.app.max_positions ?? Infinity;
    while ((ids = this.#encode(turns)).length > (longest * 3) / 4 && turns.length > 1) turns = turns.slice(1);
    if (!ids.length) throw new Error("the prompt has no tokens");
    if (ids.length > longest) {
      throw new Error(`the prompt has ${ids.length} tokens, the model takes ${longest}`);
    }
    this.#place(turns.flatMap(({ image }) => image ?? []), ids);
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
    const { app } = this;
    let text = "";
    turns.forEach((turn, i) => {
      text += this.#before(turn, i ? "next_prompt" : "before_prompt") + turn.prompt;
      text += i + 1 < turns.length ? app.before_answer + turn.answer : app.after_prompt;
    });
    const { ids } = this.tokenizer.encode(text, { add_special_tokens: false });
    return [...app.prefix, ...ids, ...app.suffix];
  }

  /* The text before a prompt, which has the tokens of its image. */
  #before({ image }, name) {
    const { images } = this.app;
    return image && !images.required ? images[name].join(images.token.repeat(image.tokens)) : this.app[name];
  }

  /* Finds the places of images in a prompt, and the positions of its tokens. */
  #place(images, ids) {
    this.#keys = [...ids];
    const { images: settings } = this.app;
    if (settings?.required) this.#feeds = images.at(-1).feeds;
    if (!settings || settings.required) return;
    const owners = images.flatMap((image) => Array(image.tokens).fill(image));
    const places = [...ids.keys()].filter((i) => ids[i] === settings.token_id);
    if (places.length !== owners.length) {
      throw new Error(`${settings.token} stands for an image; leave it out of the prompt`);
    }
    places.forEach((place, i) => (this.#keys[place] = owners[i])); // two images have the same tokens
    for (const name of settings.feeds) {
      const rows = images.map((image) => image.feeds[name].data);
      const all = new Float32Array(places.length * settings.size);
      rows.reduce((at, part) => (all.set(part, at), at + part.length), 0);
      this.#feeds[name] = all;
    }
    if (settings.position_axes > 1) this.#positions = imagePositions(ids, settings.token_id, images);
  }

  /* Streams the tokens that continue `ids`, of which only what the cache lacks is read. */
  async *#generate(ids, most, sampler) {
    const cached = this.#cached;
    let kept = 0;
    while (kept < ids.length - 1 && cached[kept] === this.#keys[kept]) kept++;
    const { cache_in_place, next_prompt } = this.app;
    if (!cache_in_place && (next_prompt === null || kept < cached.length)) kept = 0; // it is whole
    if (!cache_in_place && !kept) this.#replaceCache(this.#emptyCache());
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
      input_ids: () => this.#int64(fresh),
      attention_mask: () => this.#int64(Array(end).fill(1)),
      position_ids: () => this.#positionIds(first, end),
    };
    const feeds = { ...this.cache, ...this.#imageFeeds(fresh) };
    for (const name of this.app.inputs) feeds[name] = values[name]();
    const results = await this.session.run(feeds);
    const presents = this.app.cache.map((name) => [`past_key_values.${name}`, results[`present.${name}`]]);
    this.#replaceCache(Object.fromEntries(presents));
    this.#cached.push(...(first < this.#keys.length ? this.#keys.slice(first, end) : fresh));
    const logits = results.logits.data.slice(-this.app.vocabulary);
    results.logits.dispose?.();
    const token = this.app.images?.token_id;
    if (token !== undefined) logits[token] = -Infinity; // it is not text
    return logits;
  }

  #replaceCache(cache) {
    for (const tensor of Object.values(this.cache)) tensor.dispose?.();
    this.cache = cache;
  }

  #positionIds(first, end) {
    const positions = this.#positions, known = positions[0]?.length;
    if (!known) return this.#int64(Array.from({ length: end - first }, (_, i) => first + i));
    const next = positions.flat().reduce((most, each) => Math.max(most, each), 0) + 1 - known;
    const row = (axis) => (first < known ? axis.slice(first, end) : [first + next]);
    return this.#int64(positions.flatMap(row), [3, 1, end - first]);
  }

  /* What the decoder reads of images: all of one, or the last embeddings, of tokens to read. */
  #imageFeeds(fresh) {
    const { images } = this.app;
    if (!images || images.required) return this.#feeds;
    const count = fresh.filter((token) => token === images.token_id).length;
    const last = (rows) => rows.slice(rows.length - count * images.size);
    const tensor = (name) => new this.ort.Tensor("float32", last(this.#feeds[name]), [count, images.size]);
    return Object.fromEntries(images.feeds.map((name) => [name, tensor(name)]));
  }

  #int64(values, shape = [1, values.length]) {
    return new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
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
