#include <rewind/nn/models/lenet5.h>
#include <rewind/nn/models/mlp.h>
#include <rewind/nn/models/mobilenet_v1.h>
#include <rewind/nn/models/mobilenet_v2.h>
#include <rewind/nn/models/preresnet.h>
#include <rewind/nn/models/registry.h>
#include <rewind/nn/models/resnet.h>

namespace rewind_lib::nn::models {
namespace {

const Model models[] = {
    {"mlp", 1, 28, 10, false, false,
     [](const Options& o) {
       return mlp({o.size * o.size, 512, 256, o.classes});
     }},
    {"lenet5", 1, 28, 10, false, false, [](const Options& o) { return lenet5({.size = o.size, .classes = o.classes}); }},
    {"lenet5_rgb32", 3, 32, 10, false, false,
     [](const Options& o) { return lenet5({.channels = 3, .size = o.size, .classes = o.classes}); }},
    {"resnet18", 3, 224, 1000, false, false, [](const Options& o) { return resnet({.depth = 18, .classes = o.classes}); }},
    {"resnet34", 3, 224, 1000, false, false, [](const Options& o) { return resnet({.depth = 34, .classes = o.classes}); }},
    {"resnet18_cifar", 3, 32, 10, false, false,
     [](const Options& o) { return resnet({.depth = 18, .classes = o.classes, .cifar = true}); }},
    {"resnet34_cifar", 3, 32, 10, false, false,
     [](const Options& o) { return resnet({.depth = 34, .classes = o.classes, .cifar = true}); }},
    {"preresnet", 3, 32, 10, false, true,
     [](const Options& o) { return preresnet({.depth = o.depth == 0 ? 164 : o.depth, .classes = o.classes}); }},
    {"mobilenet_v1", 3, 224, 1000, true, false,
     [](const Options& o) { return mobilenet_v1({.width = o.width, .classes = o.classes}); }},
    {"mobilenet_v2", 3, 224, 1000, true, false,
     [](const Options& o) { return mobilenet_v2({.width = o.width, .classes = o.classes}); }},
    {"mobilenet_v2_cifar", 3, 32, 10, true, false,
     [](const Options& o) { return mobilenet_v2({.width = o.width, .classes = o.classes, .cifar = true}); }},
};

}  // namespace

std::span<const Model> all() { return models; }

const Model& find(std::string_view name) {
  std::string known;
  for (const Model& m : models) {
    if (name == m.name) return m;
    known += str(known.empty() ? "" : ", ", m.name);
  }
  fail(str("models: there is no model '", name, "'; known are ", known));
}

Sequential make(std::string_view name, Options o) {
  const Model& m = find(name);
  if (o.width != 1 && !m.has_width) fail(str("models: ", name, " has no width"));
  if (o.depth != 0 && !m.has_depth) fail(str("models: ", name, " has no depth to choose"));
  if (o.classes == 0) o.classes = m.classes;
  if (o.size == 0) o.size = m.size;
  return m.build(o);
}

Shape input_shape(std::string_view name, int batch, int size) {
  const Model& m = find(name);
  if (size == 0) size = m.size;
  return {batch, size, size, m.channels};
}

}  // namespace rewind_lib::nn::models
