/* Images as the model reads them: the graphs of the image processor and of the encoder. */

export class ImageReader {
  /** `processor`, `encoder`: sessions; `settings`: `images` of app.json. */
  constructor(ort, processor, encoder, settings) {
    Object.assign(this, { ort, processor, encoder, settings });
  }

  /** Reads an ImageData, whose pixels are opaque. */
  async read({ data, width, height }) {
    const pixels = new Uint8Array(width * height * 3);
    for (let i = 0, at = 0; at < pixels.length; i++) if (i % 4 !== 3) pixels[at++] = data[i];
    const image = new this.ort.Tensor("uint8", pixels, [height, width, 3]);
    try {
      const inputs = await this.processor.run({ image });
      const outputs = await this.encoder.run(inputs);
      const { feeds: names, outputs: from } = this.settings;
      const feeds = Object.fromEntries(names.map((name, i) => [name, outputs[from[i]]]));
      const grid = inputs.image_grid_thw && Array.from(inputs.image_grid_thw.data, Number);
      return { feeds, grid, tokens: feeds[names[0]].dims[0] };
    } catch (error) {
      const reason = error.message ?? error;
      throw new Error(`the model does not read an image of ${width} x ${height} pixels (${reason})`);
    }
  }
}

/** Computes positions in time, height and width, three lists (Qwen2-VL). The tokens of an image have its
    time, and the row and column of their patch, counted from the position after the text before; the
    text after it goes on after the largest of these. */
export function imagePositions(ids, token, images) {
  const positions = [[], [], []], remaining = images.values();
  const add = (...values) => values.forEach((value, axis) => positions[axis].push(value));
  let next = 0;
  while (positions[0].length < ids.length) {
    if (ids[positions[0].length] !== token) {
      add(next, next, next);
      next++;
      continue;
    }
    const { grid: [times, height, width], tokens } = remaining.next().value;
    const merge = Math.round(Math.sqrt((times * height * width) / tokens));
    const rows = height / merge, columns = width / merge;
    for (let i = 0; i < tokens; i++) {
      const row = Math.floor(i / columns) % rows;
      add(next + Math.floor(i / (rows * columns)), next + row, next + (i % columns));
    }
    next += Math.max(times, rows, columns);
  }
  return positions;
}
