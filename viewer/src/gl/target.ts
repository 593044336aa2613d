import type { Lens } from "../camera/camera";
import { ViewerError } from "../errors";
import { contextLost, Program } from "./context";

/** An image on the graphics device that can be drawn into and shown. */
export class Target {
  width = 0;
  height = 0;
  private readonly framebuffer: WebGLFramebuffer;
  private texture: WebGLTexture | null = null;

  constructor(private readonly gl: WebGL2RenderingContext) {
    this.framebuffer = gl.createFramebuffer();
  }

  /** Draw into this image from now on. */
  bind(width: number, height: number): void {
    const { gl } = this;
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.framebuffer);
    if (this.width === width && this.height === height) return;
    gl.deleteTexture(this.texture);
    this.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA8, width, height);
    for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.LINEAR);
    for (const axis of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, axis, gl.CLAMP_TO_EDGE);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.texture, 0);
    if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) {
      [this.width, this.height] = [0, 0];
      if (gl.isContextLost()) throw contextLost();
      throw new ViewerError(
        `This device's graphics have no room for an image of ${width} x ${height}`,
        "Lower the resolution, make the window smaller, or close other pages.",
      );
    }
    this.width = width;
    this.height = height;
  }

  /** Wait until drawing is complete, by reading a pixel. */
  finish(): void {
    this.gl.readPixels(0, 0, 1, 1, this.gl.RGBA, this.gl.UNSIGNED_BYTE, new Uint8Array(4));
  }

  /** All pixels, row by row from the top, four bytes each. */
  read(): Uint8ClampedArray<ArrayBuffer> {
    const { gl, width, height } = this;
    const upward = new Uint8ClampedArray(4 * width * height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.framebuffer);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, upward);
    const pixels = new Uint8ClampedArray(upward.length);
    for (let row = 0; row < height; row++) {
      pixels.set(upward.subarray(4 * width * (height - 1 - row), 4 * width * (height - row)), 4 * width * row);
    }
    return pixels;
  }

  /** Free the image's memory. */
  delete(): void {
    this.gl.deleteTexture(this.texture);
    this.gl.deleteFramebuffer(this.framebuffer);
  }

  /** The texture to show. */
  get source(): WebGLTexture | null {
    return this.texture;
  }
}

/** Copies targets to the canvas, enlarged with linear filtering. */
export class Screen {
  private constructor(
    private readonly gl: WebGL2RenderingContext,
    private readonly program: Program,
  ) {}

  static async create(gl: WebGL2RenderingContext): Promise<Screen> {
    const source = `#version 300 es
precision highp float;
uniform highp sampler2D picture;
uniform vec2 size;
out vec4 result;
void main() { result = vec4(texture(picture, gl_FragCoord.xy / size).rgb, 1.0); }`;
    return new Screen(gl, await Program.link(gl, source));
  }

  /** Show a target's rows on the canvas, from `from` (a fraction of the height, from the bottom) to the top. */
  show(target: Target, canvas: Pick<Lens, "width" | "height">, from = 0): void {
    const { gl, program } = this;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.enable(gl.SCISSOR_TEST);
    const bottom = Math.ceil(from * canvas.height);
    gl.scissor(0, bottom, canvas.width, canvas.height - bottom);
    program.use();
    gl.bindTexture(gl.TEXTURE_2D, target.source);
    gl.uniform1i(program.at("picture"), 0);
    gl.uniform2f(program.at("size"), canvas.width, canvas.height);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.disable(gl.SCISSOR_TEST);
  }
}
