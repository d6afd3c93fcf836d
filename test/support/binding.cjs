// node -r this: the binding that VITRINE_TEST_BINDING names is loaded in place of the one that set-up built.
const Module = require("node:module");

const resolve = Module._resolveFilename;
Module._resolveFilename = function (request, ...rest) {
  return request.endsWith("tfjs_binding.node") ? process.env.VITRINE_TEST_BINDING : resolve.call(this, request, ...rest);
};
