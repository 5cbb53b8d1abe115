#pragma once
// The models by name, for programs that take one on the command line.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

/// What a caller may choose; 0 leaves it to the model.
struct Options {
  int classes = 0;
  int size = 0;      ///< height and width of the images
  double width = 1;  ///< multiplies channels, where the model has that
  int depth = 0;     ///< of preresnet: 9 n + 2
};

struct Model {
  const char* name;
  int channels, size, classes;  ///< of the images and labels that it is meant for
  bool has_width, has_depth;
  Sequential (*build)(const Options& options);  ///< called with classes and size filled in
};
/// All models, and one by name. Throws Error naming the known ones.
std::span<const Model> all();
const Model& find(std::string_view name);

/// Builds a model. Throws Error on an unknown name or an option that the model does not have.
Sequential make(std::string_view name, Options options = {});
/// [batch, size, size, channels]: what the model takes. size 0: what it is meant for.
Shape input_shape(std::string_view name, int batch, int size = 0);

}  // namespace rewind_lib::nn::models
