#include <rewind/nn/models/alexnet.h>
#include <rewind/nn/models/densenet.h>
#include <rewind/nn/models/efficientnet.h>
#include <rewind/nn/models/lenet5.h>
#include <rewind/nn/models/mlp.h>
#include <rewind/nn/models/mnasnet.h>
#include <rewind/nn/models/mobilenet_v1.h>
#include <rewind/nn/models/mobilenet_v2.h>
#include <rewind/nn/models/mobilenet_v3.h>
#include <rewind/nn/models/preresnet.h>
#include <rewind/nn/models/registry.h>
#include <rewind/nn/models/resnet.h>
#include <rewind/nn/models/shufflenet_v1.h>
#include <rewind/nn/models/shufflenet_v2.h>
#include <rewind/nn/models/squeezenet.h>
#include <rewind/nn/models/vgg.h>

namespace rewind_lib::nn::models {
namespace {

template <int depth, bool cifar = false>
Sequential resnet_of(const Options& o) {
  return resnet({.depth = depth, .classes = o.classes, .cifar = cifar});
}
template <int variant>
Sequential efficientnet_of(const Options& o) {
  return efficientnet({.variant = variant, .width = o.width, .classes = o.classes});
}
template <bool small>
Sequential mobilenet_v3_of(const Options& o) {
  return mobilenet_v3({.small = small, .width = o.width, .classes = o.classes});
}

const Model models[] = {
    {"mlp", 1, 28, 10, false, false,
     [](const Options& o) {
       if (o.size > 46340) fail(str("mlp: images of ", o.size, " x ", o.size, " have more pixels than a layer may have inputs"));
       return mlp({o.size * o.size, 512, 256, o.classes});
     }},
    {"lenet5", 1, 28, 10, false, false, [](const Options& o) { return lenet5({.size = o.size, .classes = o.classes}); }},
    {"lenet5_rgb32", 3, 32, 10, false, false,
     [](const Options& o) { return lenet5({.channels = 3, .size = o.size, .classes = o.classes}); }},
    {"alexnet", 3, 224, 1000, true, false, [](const Options& o) { return alexnet({.width = o.width, .classes = o.classes}); }},
    {"vgg16", 3, 224, 1000, true, false, [](const Options& o) { return vgg({.width = o.width, .classes = o.classes}); }},
    {"resnet18", 3, 224, 1000, false, false, resnet_of<18>},
    {"resnet34", 3, 224, 1000, false, false, resnet_of<34>},
    {"resnet50", 3, 224, 1000, false, false, resnet_of<50>},
    {"resnet101", 3, 224, 1000, false, false, resnet_of<101>},
    {"resnet152", 3, 224, 1000, false, false, resnet_of<152>},
    {"resnet18_cifar", 3, 32, 10, false, false, resnet_of<18, true>},
    {"resnet34_cifar", 3, 32, 10, false, false, resnet_of<34, true>},
    {"resnet50_cifar", 3, 32, 10, false, false, resnet_of<50, true>},
    {"resnet101_cifar", 3, 32, 10, false, false, resnet_of<101, true>},
    {"resnet152_cifar", 3, 32, 10, false, false, resnet_of<152, true>},
    {"preresnet", 3, 32, 10, false, true,
     [](const Options& o) { return preresnet({.depth = o.depth == 0 ? 164 : o.depth, .classes = o.classes}); }},
    {"mobilenet_v1", 3, 224, 1000, true, false,
     [](const Options& o) { return mobilenet_v1({.width = o.width, .classes = o.classes}); }},
    {"mobilenet_v2", 3, 224, 1000, true, false,
     [](const Options& o) { return mobilenet_v2({.width = o.width, .classes = o.classes}); }},
    {"mobilenet_v2_cifar", 3, 32, 10, true, false,
     [](const Options& o) { return mobilenet_v2({.width = o.width, .classes = o.classes, .cifar = true}); }},
    {"mobilenet_v3_large", 3, 224, 1000, true, false, mobilenet_v3_of<false>},
    {"mobilenet_v3_small", 3, 224, 1000, true, false, mobilenet_v3_of<true>},
    {"efficientnet_b0", 3, 224, 1000, true, false, efficientnet_of<0>},
    {"efficientnet_b1", 3, 240, 1000, true, false, efficientnet_of<1>},
    {"shufflenet_v1", 3, 224, 1000, true, false,
     [](const Options& o) { return shufflenet_v1({.width = o.width, .classes = o.classes}); }},
    {"shufflenet_v2", 3, 224, 1000, true, false,
     [](const Options& o) { return shufflenet_v2({.width = o.width, .classes = o.classes}); }},
    {"squeezenet1_1", 3, 224, 1000, false, false, [](const Options& o) { return squeezenet({.classes = o.classes}); }},
    {"mnasnet", 3, 224, 1000, true, false, [](const Options& o) { return mnasnet({.width = o.width, .classes = o.classes}); }},
    {"densenet121", 3, 224, 1000, true, false, [](const Options& o) { return densenet({.width = o.width, .classes = o.classes}); }},
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
