/** The picture that pattern() of test/oracle/resize/make.py makes: no file needed. */
export function pattern(width: number, height: number) {
  const data = new Uint8Array(width * height * 3);
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++) for (let c = 0; c < 3; c++) data[i++] = (x * 7 + y * 13 + c * 31 + ((x * y) >> 3)) & 255;
  return { width, height, data };
}
