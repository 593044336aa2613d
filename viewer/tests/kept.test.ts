import { afterEach, expect, it, vi } from "vitest";
import { keep, kept } from "../src/ui/kept";

afterEach(() => {
  vi.unstubAllGlobals();
});

it("keeps numbers in their range", () => {
  const items = new Map<string, string>();
  vi.stubGlobal("sessionStorage", {
    getItem: (key: string) => items.get(key) ?? null,
    setItem: (key: string, value: string) => items.set(key, value),
  });
  expect(kept("a", 25, 100)).toBe(100);
  keep("a", 30);
  expect(kept("a", 25, 100)).toBe(30);
  for (const text of ["24", "101", "30.5", "text", ""]) {
    items.set("a", text);
    expect(kept("a", 25, 100)).toBe(100);
  }
});

it("does without a storage", () => {
  const refuse = () => {
    throw new DOMException("no", "SecurityError");
  };
  vi.stubGlobal("sessionStorage", { getItem: refuse, setItem: refuse });
  keep("a", 30);
  expect(kept("a", 25, 100)).toBe(100);
});
