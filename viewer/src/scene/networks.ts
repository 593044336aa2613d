import { DamagedFile } from "../errors";
import type { Field } from "../field/field";
import { FieldRenderer } from "../gl/fieldRenderer";
import type { Mode } from "../shader/fragment";
import type { FieldDescription, SceneDescription } from "./format";
import { downloadField, readField } from "./load";

/** Called with what the user is waiting for. */
export interface Waiting {
  /** Bytes of a network have arrived. */
  loading(name: string, loaded: number, total: number): void;
  /** All bytes have arrived. The next step blocks the page, and starts when this promise resolves. */
  preparing(): Promise<void>;
  /** Nothing is pending anymore: each network is ready or has failed. */
  over(): void;
}

/** The scene's fields on the graphics device, each loaded on first use. */
export class Networks {
  private readonly loaded = new Map<number, Promise<FieldRenderer>>();
  private underway = 0;

  constructor(
    private readonly gl: WebGL2RenderingContext,
    private readonly scene: SceneDescription,
    private readonly waiting: Waiting,
  ) {}

  /**
   * A network. The first call also compiles the program of `mode`.
   * @throws ViewerError if the network cannot be loaded or this device does not compute it correctly.
   */
  get(index: number, mode: Mode = "color"): Promise<FieldRenderer> {
    let renderer = this.loaded.get(index);
    if (renderer === undefined) {
      renderer = this.load(index, mode);
      this.loaded.set(index, renderer);
      // Forget a failed download, so that it can be tried again.
      renderer.catch(() => this.loaded.delete(index));
    }
    return renderer;
  }

  private async load(index: number, mode: Mode): Promise<FieldRenderer> {
    const description = this.scene.fields[index];
    this.underway++;
    try {
      // A visitor who came while the files were being replaced has an old file under the new address in the cache.
      const field = await this.read(description, "default").catch((error: unknown) => {
        if (error instanceof DamagedFile) return this.read(description, "reload");
        throw error;
      });
      const renderer = new FieldRenderer(this.gl, field);
      try {
        await renderer.check(field);
        await renderer.prepare(mode);
      } catch (error) {
        renderer.delete();
        throw error;
      }
      return renderer;
    } finally {
      if (--this.underway === 0) this.waiting.over();
    }
  }

  private async read(description: FieldDescription, cache: RequestCache): Promise<Field> {
    const progress = (loaded: number, total: number) => {
      this.waiting.loading(description.name, loaded, total);
    };
    const bytes = await downloadField(description, progress, cache);
    await this.waiting.preparing();
    return readField(description, bytes);
  }
}
