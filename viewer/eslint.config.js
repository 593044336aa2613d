import tseslint from "typescript-eslint";

export default tseslint.config(
  { ignores: ["node_modules", "dist", "eslint.config.js"] },
  ...tseslint.configs.strictTypeChecked,
  ...tseslint.configs.stylisticTypeChecked,
  {
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      eqeqeq: "error",
      // Numbers in messages and shaders are meant.
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      // Indices into arrays whose length was checked.
      "@typescript-eslint/no-non-null-assertion": "off",
    },
  },
);
