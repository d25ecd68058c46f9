SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: -1,
  tryItOutEnabled: false,
  // Nothing leaves for another host: the default validator is one.
  validatorUrl: null,
  queryConfigEnabled: false,
});
