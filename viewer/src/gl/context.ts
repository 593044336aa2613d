import { ViewerError } from "../errors";

/**
 * The WebGL 2 context of a canvas.
 * @throws ViewerError if the browser has none.
 */
export function openContext(canvas: HTMLCanvasElement): WebGL2RenderingContext {
  const gl = canvas.getContext("webgl2", {
    alpha: false,
    antialias: false,
    depth: false,
    powerPreference: "high-performance",
    preserveDrawingBuffer: true, // Screen.show draws some rows and keeps the others
  });
  if (gl === null) {
    throw new ViewerError(
      "This browser cannot draw with WebGL 2",
      "Use a current Firefox, Chrome, Edge or Safari (15 or newer), and enable hardware acceleration in its settings.",
    );
  }
  const precision = gl.getShaderPrecisionFormat(gl.FRAGMENT_SHADER, gl.HIGH_FLOAT)?.precision ?? 0;
  if (precision < 23) {
    throw new ViewerError(
      "This device's graphics have too little precision",
      "The scene needs shaders in single precision. Open the page on another device.",
    );
  }
  return gl;
}

const VERTEX = `#version 300 es
void main() {
  // One triangle that covers the whole viewport.
  gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0);
}`;

/** A linked program and its uniforms by name. */
export class Program {
  private readonly locations = new Map<string, WebGLUniformLocation | null>();

  private constructor(
    private readonly gl: WebGL2RenderingContext,
    readonly handle: WebGLProgram,
  ) {}

  /**
   * Compile and link, without blocking the page if the browser supports it.
   * @throws ViewerError with the driver's message if it rejects the shader.
   */
  static async link(gl: WebGL2RenderingContext, fragment: string): Promise<Program> {
    const handle = gl.createProgram();
    const shaders = [
      [gl.VERTEX_SHADER, VERTEX],
      [gl.FRAGMENT_SHADER, fragment],
    ] as const;
    const compiled = shaders.map(([type, source]) => {
      const shader = gl.createShader(type)!;
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(handle, shader);
      return shader;
    });
    gl.linkProgram(handle);
    const parallel = gl.getExtension("KHR_parallel_shader_compile");
    while (parallel !== null && gl.getProgramParameter(handle, parallel.COMPLETION_STATUS_KHR) === false) {
      if (gl.isContextLost()) throw contextLost();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    if (gl.getProgramParameter(handle, gl.LINK_STATUS) !== true) {
      if (gl.isContextLost()) throw contextLost();
      const log = [...compiled.map((shader) => gl.getShaderInfoLog(shader)), gl.getProgramInfoLog(handle)];
      throw new ViewerError(
        `This device's graphics driver refuses the shader (${log.filter(Boolean).join(" ").trim().slice(0, 300)})`,
        "Update the browser and the graphics driver, or open the page on another device.",
      );
    }
    for (const shader of compiled) gl.deleteShader(shader);
    return new Program(gl, handle);
  }

  use(): void {
    this.gl.useProgram(this.handle);
  }

  at(name: string): WebGLUniformLocation | null {
    let location = this.locations.get(name);
    if (location === undefined) {
      location = this.gl.getUniformLocation(this.handle, name);
      this.locations.set(name, location);
    }
    return location;
  }
}

/** The message for a lost graphics device. */
export function contextLost(): ViewerError {
  return new ViewerError(
    "The graphics device stopped answering",
    "Reload the page. If it happens again, lower resolution and quality and reload once more, or close other pages that use the device.",
  );
}

/** A texture that is read texel by texel, without filtering. */
export function dataTexture(
  gl: WebGL2RenderingContext,
  format: { internal: number; format: number; type: number },
  width: number,
  height: number,
  data: ArrayBufferView,
): WebGLTexture {
  if (gl.isContextLost()) throw contextLost(); // nothing is known of a lost device
  const limit = gl.getParameter(gl.MAX_TEXTURE_SIZE) as number;
  if (width > limit || height > limit) {
    throw new ViewerError(
      `The scene needs a texture of ${width} x ${height}, but this device's graphics support at most ${limit}`,
      "Open the page on another device, or export a smaller scene with --size-budget.",
    );
  }
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texStorage2D(gl.TEXTURE_2D, 1, format.internal, width, height);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, width, height, format.format, format.type, data);
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
  const error = gl.getError();
  if (error === gl.OUT_OF_MEMORY) {
    throw new ViewerError(
      "The scene does not fit into this device's graphics memory",
      "Close other pages, or export a smaller scene with --size-budget.",
    );
  }
  if (error !== gl.NO_ERROR && !gl.isContextLost()) {
    throw new ViewerError(
      "This device's graphics do not support the scene's number formats (half floats and 32-bit integers)",
      "Update the browser and the graphics driver, or open the page on another device.",
    );
  }
  return texture;
}
