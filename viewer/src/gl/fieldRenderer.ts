import type { Pose, Lens } from "../camera/camera";
import { ViewerError } from "../errors";
import { evaluateField } from "../field/evaluate";
import type { Field } from "../field/field";
import { texelLayout } from "../shader/encoding";
import {
  checkPoint,
  CHECKS,
  type FieldShader,
  fieldShader,
  type Mode,
  MODES,
  type Program as ProgramKind,
  type Work,
} from "../shader/fragment";
import { OCCUPANCY_WIDTH } from "../shader/march";
import { contextLost, dataTexture, Program } from "./context";

/** What to draw besides the camera. */
export interface Look {
  mode: Mode;
  /** Step size relative to training: 1 gives the exact image, larger values a coarser image sooner. */
  stepFactor: number;
  background: readonly number[];
  /** Smallest and largest distance shown in depth images. */
  depthRange: readonly [number, number];
}

/** A field on the graphics device. */
export class FieldRenderer {
  readonly work: Work;
  private readonly shader: FieldShader;
  private readonly table: WebGLTexture;
  private readonly occupancy: WebGLTexture;
  private readonly programs = new Map<ProgramKind, Promise<Program>>();
  private readonly ready = new Map<ProgramKind, Program>();

  /** @throws ViewerError if the device cannot hold the field. */
  constructor(
    private readonly gl: WebGL2RenderingContext,
    field: Field,
  ) {
    const { features } = field.description.encoding;
    const { channels, texels } = texelLayout(features);
    const rows = field.table.length / features;
    const log2Width = Math.max(8, Math.ceil(Math.log2(Math.sqrt(rows * texels))));
    this.shader = fieldShader(field, log2Width);
    this.work = this.shader.work;
    const width = 2 ** log2Width;
    const height = Math.ceil((rows * texels) / width);
    this.table = dataTexture(gl, tableFormat(gl, field, channels), width, height, tableTexels(field, channels, texels, width * height));
    this.occupancy = occupancyTexture(gl, field);
  }

  /** Compile the program of a mode; `draw` can be used for the mode afterwards. */
  async prepare(mode: Mode): Promise<void> {
    await this.program(programOf(mode));
  }

  /** Whether `draw` can already be used for a mode. */
  isPrepared(mode: Mode): boolean {
    return this.ready.has(programOf(mode));
  }

  /** Draw rows `from` to `to` (from the bottom) of an image into the bound framebuffer. */
  draw(pose: Pose, lens: Lens, look: Look, from: number, to: number): void {
    const { gl } = this;
    const program = this.ready.get(programOf(look.mode));
    if (program === undefined) throw new Error(`mode ${look.mode} is not prepared`);
    this.bind(program);
    gl.uniform3fv(program.at("origin"), pose.position);
    gl.uniformMatrix3fv(program.at("rotation"), false, [...pose.right, ...pose.up, ...pose.back]);
    gl.uniform4f(program.at("lens"), lens.fx, lens.fy, lens.cx, lens.height - lens.cy);
    gl.uniform3f(program.at("background"), look.background[0], look.background[1], look.background[2]);
    gl.uniform1i(program.at("mode"), MODES[look.mode]);
    gl.uniform2f(program.at("depthRange"), look.depthRange[0], look.depthRange[1]);
    gl.uniform1f(program.at("stepFactor"), look.stepFactor);
    gl.viewport(0, 0, lens.width, lens.height);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(0, from, lens.width, to - from);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.disable(gl.SCISSOR_TEST);
  }

  /**
   * Evaluate the field, which is not kept here, at a few points on the device and in TypeScript.
   * @throws ViewerError if the results do not agree, since images would be wrong.
   */
  async check(field: Field): Promise<void> {
    const { gl } = this;
    this.bind(await this.program("check"));
    const target = gl.createRenderbuffer();
    const framebuffer = gl.createFramebuffer();
    gl.bindRenderbuffer(gl.RENDERBUFFER, target);
    gl.renderbufferStorage(gl.RENDERBUFFER, gl.RGBA8, 4, CHECKS);
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.RENDERBUFFER, target);
    gl.viewport(0, 0, 4, CHECKS);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    const bytes = new Uint8Array(16 * CHECKS);
    gl.readPixels(0, 0, 4, CHECKS, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.deleteFramebuffer(framebuffer);
    gl.deleteRenderbuffer(target);
    const computed = new Float32Array(bytes.buffer);
    for (let n = 0; n < CHECKS; n++) {
      const { position, direction } = checkPoint(n);
      const expected = evaluateField(field, position, direction);
      const right = [expected.logDensity, ...expected.color].every(
        (value, i) => Math.abs(computed[4 * n + i] - value) <= 0.01 + 0.01 * Math.abs(value),
      );
      if (!right) {
        if (gl.isContextLost()) throw contextLost();
        throw new ViewerError(
          "This device's graphics compute the scene incorrectly",
          "Half floats or integers do not work as WebGL 2 requires. Update the browser and the graphics driver, or " +
            "open the page on another device.",
        );
      }
    }
  }

  /** Free the device's memory; nothing can be drawn afterwards. */
  delete(): void {
    for (const texture of [this.table, this.occupancy]) this.gl.deleteTexture(texture);
  }

  private program(kind: ProgramKind): Promise<Program> {
    let program = this.programs.get(kind);
    if (program === undefined) {
      program = Program.link(this.gl, this.shader.fragment(kind)).then((linked) => {
        this.ready.set(kind, linked);
        return linked;
      });
      this.programs.set(kind, program);
      program.catch(() => this.programs.delete(kind)); // it may succeed when it is asked for again
    }
    return program;
  }

  private bind(program: Program): void {
    const { gl } = this;
    program.use();
    [this.table, this.occupancy].forEach((texture, unit) => {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.uniform1i(program.at(unit === 0 ? "table" : "occupancy"), unit);
    });
    gl.activeTexture(gl.TEXTURE0);
  }
}

function tableFormat(
  gl: WebGL2RenderingContext,
  field: Field,
  channels: 1 | 2 | 4,
): { internal: number; format: number; type: number } {
  const format = { 1: gl.RED, 2: gl.RG, 4: gl.RGBA }[channels];
  if (field.tableScale !== undefined) {
    return { internal: { 1: gl.R8, 2: gl.RG8, 4: gl.RGBA8 }[channels], format, type: gl.UNSIGNED_BYTE };
  }
  return { internal: { 1: gl.R16F, 2: gl.RG16F, 4: gl.RGBA16F }[channels], format, type: gl.HALF_FLOAT };
}

/** The table with rows padded to whole texels, and texels padded to a whole texture. */
function tableTexels(field: Field, channels: number, texels: number, count: number): Uint16Array | Uint8Array {
  const { table, description } = field;
  const { features } = description.encoding;
  const padded = table instanceof Uint8Array ? new Uint8Array(count * channels) : new Uint16Array(count * channels);
  const width = channels * texels;
  if (features === width) {
    padded.set(table);
  } else {
    for (let i = 0; i < table.length; i++) padded[Math.floor(i / features) * width + (i % features)] = table[i];
  }
  return padded;
}

function occupancyTexture(gl: WebGL2RenderingContext, { occupancy }: Field): WebGLTexture {
  const height = Math.ceil(occupancy.length / (4 * OCCUPANCY_WIDTH));
  const bytes = new Uint8Array(4 * OCCUPANCY_WIDTH * height);
  bytes.set(occupancy);
  const format = { internal: gl.R32UI, format: gl.RED_INTEGER, type: gl.UNSIGNED_INT };
  return dataTexture(gl, format, OCCUPANCY_WIDTH, height, new Uint32Array(bytes.buffer));
}

function programOf(mode: Mode): ProgramKind {
  return mode === "normals" ? "normals" : "picture";
}
