import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { defineConfig, type Plugin } from "vite";

const root = import.meta.dirname;

/** What the build depends on, as a hash over names and contents; tests compute the same in Python. */
function sourceHash(): string {
  const below = (folder: string): string[] =>
    readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => relative(root, join(entry.parentPath, entry.name)));
  const files = ["index.html", "package.json", "package-lock.json", "vite.config.ts", ...below("public"), ...below("src")].sort();
  const hash = createHash("sha256");
  for (const file of files) hash.update(`${file}\0`).update(readFileSync(join(root, file))).update("\0");
  return hash.digest("hex");
}

/** A classic deferred script also runs in a page on disk, where it can say why nothing is shown. */
const classicScript: Plugin = {
  name: "classic-script",
  enforce: "post",
  transformIndexHtml: (html) => {
    const local = html.replace('type="module" crossorigin', "defer").replaceAll(" crossorigin", "");
    // Caches may hold the files of another version.
    return local.replace(/\.\/viewer\.(js|css)/g, `$&?${sourceHash().slice(0, 12)}`);
  },
  generateBundle() {
    this.emitFile({ type: "asset", fileName: "sources.sha256", source: `${sourceHash()}\n` });
  },
};

export default defineConfig({
  base: "./",
  plugins: [classicScript],
  build: {
    // Inside the Python package, so that users need no node.
    outDir: process.env.EUGEN_VIEWER_OUT ?? "../eugen_nerf/export/web",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    cssCodeSplit: false,
    rollupOptions: {
      output: { format: "iife", entryFileNames: "viewer.js", assetFileNames: "viewer.[ext]" },
    },
  },
});
