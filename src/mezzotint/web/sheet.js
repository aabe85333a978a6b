/** A labelled sheet of pictures, drawn on a canvas. */

const PAD = 8;
const LINE = 18;
const FONT = "14px system-ui, sans-serif";
const [PAPER, INK, FAINT] = ["#faf8f4", "#1c1a18", "#777064"];

function wrapped(pen, text, width) {
  const found = [""];
  for (const word of text.split(/\s+/)) {
    const longer = `${found.at(-1)} ${word}`.trim();
    if (pen.measureText(longer).width <= width || !found.at(-1)) found[found.length - 1] = longer;
    else found.push(word);
  }
  return found;
}

/**
 * `{canvas, boxes}`: pictures row by row, unscaled; labels above columns and beside rows where they are given.
 * A box is [left, top, width, height].
 */
export function drawSheet(pictures, columns, rows, above, beside, title = "") {
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d");
  pen.font = FONT;
  const range = (n) => Array.from({ length: n }, (_, i) => i);
  const widths = range(columns).map((i) => Math.max(...range(rows).map((row) => pictures[row * columns + i].width)));
  const heights = range(rows).map((row) => Math.max(...range(columns).map((i) => pictures[row * columns + i].height)));
  const sides = beside ? range(rows).map((i) => beside(i)) : [];
  const margin = sides.length ? Math.min(240, Math.ceil(Math.max(...sides.map((side) => pen.measureText(side).width)))) + PAD : 0;
  const whole = margin + widths.reduce((sum, width) => sum + width + PAD, PAD);
  const heading = title ? wrapped(pen, title, whole - 2 * PAD) : [];
  const tops = above ? range(columns).map((i) => wrapped(pen, above(i), widths[i])) : [];
  const start = PAD + (heading.length ? heading.length * LINE + PAD : 0);
  const head = start + (tops.length ? Math.max(...tops.map((top) => top.length)) * LINE + PAD : 0);
  canvas.width = whole;
  canvas.height = head + heights.reduce((sum, height) => sum + height + PAD, 0);
  pen.fillStyle = PAPER;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.font = FONT;
  pen.textBaseline = "top";
  pen.fillStyle = FAINT;
  heading.forEach((line, i) => pen.fillText(line, PAD, PAD + i * LINE));
  pen.fillStyle = INK;
  const left = (column) => margin + PAD + widths.slice(0, column).reduce((sum, width) => sum + width + PAD, 0);
  const top = (row) => head + heights.slice(0, row).reduce((sum, height) => sum + height + PAD, 0);
  tops.forEach((lines, column) => lines.forEach((line, i) => pen.fillText(line, left(column), start + i * LINE)));
  sides.forEach((side, row) => wrapped(pen, side, margin).forEach((line, i) => pen.fillText(line, PAD, top(row) + i * LINE)));
  const boxes = pictures.map((picture, i) => {
    const [x, y] = [left(i % columns), top(Math.floor(i / columns))];
    pen.drawImage(picture, x, y);
    return [x, y, picture.width, picture.height];
  });
  return { canvas, boxes };
}
