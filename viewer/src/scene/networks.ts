import { FieldRenderer } from "../gl/fieldRenderer";
import type { Mode } from "../shader/fragment";
import type { SceneDescription } from "./format";
import { downloadField, readField } from "./load";

/** Told what the visitor waits for. */
export interface Waiting {
  /** Bytes of a network have arrived. */
  loading(name: string, loaded: number, total: number): void;
  /** All have. What follows keeps the page busy, and begins when this is done. */
  preparing(): Promise<void>;
  /** Nothing is waited for any more: each network can be drawn or has failed. */
  over(): void;
}

/** The scene's fields on the graphics device, each loaded when it is first asked for. */
export class Networks {
  private readonly loaded = new Map<number, Promise<FieldRenderer>>();
  private underway = 0;

  constructor(
    private readonly gl: WebGL2RenderingContext,
    private readonly scene: SceneDescription,
    private readonly waiting: Waiting,
  ) {}

  /**
   * A network; the first time, what `mode` needs is compiled too.
   * @throws ViewerError if it cannot be loaded or this device does not compute it rightly.
   */
  get(index: number, mode: Mode = "color"): Promise<FieldRenderer> {
    let renderer = this.loaded.get(index);
    if (renderer === undefined) {
      renderer = this.load(index, mode);
      this.loaded.set(index, renderer);
      // A failed download may succeed when it is asked for again.
      renderer.catch(() => this.loaded.delete(index));
    }
    return renderer;
  }

  private async load(index: number, mode: Mode): Promise<FieldRenderer> {
    const description = this.scene.fields[index];
    this.underway++;
    try {
      const bytes = await downloadField(description, (loaded, total) => {
        this.waiting.loading(description.name, loaded, total);
      });
      await this.waiting.preparing();
      const renderer = new FieldRenderer(this.gl, readField(description, bytes));
      await renderer.check();
      await renderer.prepare(mode);
      return renderer;
    } finally {
      if (--this.underway === 0) this.waiting.over();
    }
  }
}
