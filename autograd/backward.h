#pragma once
// Gradients: backward() collects them in leaves, grad() returns them.
//
// Threads: each records on a tape of its own, and goes back through that one only. Tensors may be read and dropped by any thread,
// but nothing is locked: who writes elements, or has two threads collect gradients in the same leaf, or draw from the default
// random generator (dropout does, and a replay sets it back), or trains a module, takes care that it is done by one at a time. Nets
// can train side by side in threads that share none of these, and one net can be evaluated by several (nn/module.h).

#include <rewind/core/tensor.h>

#include <span>

namespace rewind_lib {

/// Adds the gradient of `loss` (one element) to every leaf that it was computed from, and consumes the tape: each saved
/// tensor is freed at the moment it is dead. A second backward over the same tape throws Error, as does a loss with more
/// than one element (give an output gradient) or without a history.
/// If it throws halfway (out of memory, say), the gradients of the leaves that it had reached are dropped, so that no
/// half gradient is ever stepped on; zero_grad() clears the others.
void backward(Tensor loss);
/// The same from any tensor, with its gradient given (same shape and dtype).
void backward(Tensor output, Tensor output_gradient);
/// The same from several tensors in one sweep. Takes over both lists, leaving undefined tensors.
void backward(std::span<Tensor> outputs, std::span<Tensor> output_gradients);

struct GradOptions {
  /// The gradient of y, in its shape; not needed when y has one element.
  Tensor output_gradient = {};
  /// Records the backward itself, so that the result can be differentiated again. Keeps the tape.
  bool create_graph = false;
};
/// The gradients of y with respect to each x, leaf or computed. Collects nothing in leaves. Consumes the tape unless
/// create_graph is on; each result is then a buffer of its own, and may be written to. Throws Error when an x does not influence y,
/// when a part of the tape is gone on which one might (detach() what comes from there, if none does), and for an x that a
/// checkpointed function returned together with others, which it may have made of it.
std::vector<Tensor> grad(const Tensor& y, const std::vector<Tensor>& x, GradOptions options = {});

}  // namespace rewind_lib
