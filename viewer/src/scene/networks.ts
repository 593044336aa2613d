import { FieldRenderer } from "../gl/fieldRenderer";
import { loadField, type Progress } from "./load";
import type { SceneDescription } from "./format";

/** The scene's fields on the graphics device, each loaded when it is first asked for. */
export class Networks {
  private readonly loaded = new Map<number, Promise<FieldRenderer>>();

  constructor(
    private readonly gl: WebGL2RenderingContext,
    private readonly scene: SceneDescription,
    private readonly progress: (name: string) => Progress,
  ) {}

  /** @throws ViewerError if it cannot be loaded or this device does not compute it rightly. */
  get(index: number): Promise<FieldRenderer> {
    let renderer = this.loaded.get(index);
    if (renderer === undefined) {
      renderer = this.load(index);
      this.loaded.set(index, renderer);
      // A failed download may succeed when it is asked for again.
      renderer.catch(() => this.loaded.delete(index));
    }
    return renderer;
  }

  private async load(index: number): Promise<FieldRenderer> {
    const description = this.scene.fields[index];
    const progress = this.progress(description.name);
    const field = await loadField(description, progress);
    const renderer = new FieldRenderer(this.gl, field);
    await renderer.check();
    await renderer.prepare("color");
    return renderer;
  }
}
