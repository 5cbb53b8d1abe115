// Contractions and pools: closed forms, identities between ops, counts, memory, second derivatives and errors. That each
// gradient is the derivative is the registry test's business.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/gradcheck.h>
#include <rewind/autograd/observer.h>
#include <rewind/autograd/ops/sample.h>

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

using rewind::ConvOptions;
using rewind::DepthwiseOptions;
using rewind::Epilogue;
using rewind::from;
using rewind::Shape;
using rewind::Tensor;
using rewind::ops::sample;

namespace {

Tensor leaf(const Shape& shape, int salt = 0) { return sample(shape, -2, 2, salt).set_requires_grad(); }

std::vector<Tensor> gradients(const Tensor& y, Tensor output_gradient, const std::vector<Tensor>& x, bool create_graph = false) {
  return rewind::grad(y, x, {.output_gradient = std::move(output_gradient), .create_graph = create_graph});
}

bool close(const Tensor& a, const Tensor& b, double tolerance = 1e-12) {
  if (!(a.shape() == b.shape())) return false;
  const auto x = a.values<double>(), y = b.values<double>();
  for (std::size_t i = 0; i < x.size(); ++i)
    if (!(std::abs(x[i] - y[i]) <= tolerance * (1 + std::abs(y[i])))) return false;
  return true;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.to_vector<double>() == b.to_vector<double>();
}

Tensor transposed(const Tensor& m) {
  Tensor t = rewind::empty({m.size(1), m.size(0)}, rewind::float64);
  for (std::int64_t i = 0; i < m.size(0); ++i)
    for (std::int64_t j = 0; j < m.size(1); ++j) t.mutate<double>()[j * m.size(0) + i] = m.values<double>()[i * m.size(1) + j];
  return t;
}

/// Counts what passes the choke point.
class Counter : public rewind::Observer {
 public:
  std::int64_t macs = 0, flops = 0;
  std::vector<std::string> names;
  std::uint32_t saved_inputs = 0, saved_outputs = 0;

 private:
  void after(const rewind::OpEvent& event) override {
    macs += event.cost().macs;
    flops += event.cost().flops;
    names.emplace_back(event.op.name);
    saved_inputs = event.saves.inputs;
    saved_outputs = event.saves.outputs;
  }
  rewind::ObserverScope scope_{*this};
};

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const rewind::Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("matmul multiplies matrices") {
  const Tensor a = from<double>({1, 2, 3, 4, 5, 6}, {2, 3}), b = from<double>({1, 0, 2, -1, 0, 3}, {3, 2});
  CHECK(same_bits(rewind::matmul(a, b), from<double>({5, 7, 14, 13}, {2, 2})));
  CHECK(same_bits(rewind::matmul(from<double>({1, 2, 3}, {3}), b), from<double>({5, 7}, {2})));
}

TEST_CASE("the transpose flags of matmul transpose") {
  const Tensor a = sample({3, 4}), b = sample({4, 5}, -1, 2, 1), c = rewind::matmul(a, b);
  CHECK(close(rewind::matmul(transposed(a), b, true), c));
  CHECK(close(rewind::matmul(a, transposed(b), false, true), c));
  CHECK(close(rewind::matmul(transposed(a), transposed(b), true, true), c));
}

TEST_CASE("a batched matmul is a matmul of each pair, and a plain side takes part in each") {
  const Tensor a = sample({2, 3, 4}), b = sample({2, 4, 5}, -1, 2, 1);
  const Tensor all = rewind::matmul(a, b), plain_b = rewind::matmul(a, view_as(view_rows(b, 1, 2), {4, 5})),
               plain_a = rewind::matmul(view_as(view_rows(a, 0, 1), {3, 4}), b);
  for (int i = 0; i < 2; ++i) {
    const auto row = [&](const Tensor& t, int at) { return view_as(view_rows(t, at, at + 1), {t.size(1), t.size(2)}); };
    CHECK(close(row(all, i), rewind::matmul(row(a, i), row(b, i))));
    CHECK(close(row(plain_b, i), rewind::matmul(row(a, i), row(b, 1))));
    CHECK(close(row(plain_a, i), rewind::matmul(row(a, 0), row(b, i))));
  }
}

TEST_CASE("linear is x w^T + bias, over any leading axes") {
  const Tensor x = from<double>({1, 2, 3, 4}, {1, 2, 2}), w = from<double>({1, 0, 0, 1, 1, 1}, {3, 2}),
               bias = from<double>({10, 20, -40}, {3});
  CHECK(same_bits(rewind::linear(x, w, bias), from<double>({11, 22, -37, 13, 24, -33}, {1, 2, 3})));
  CHECK(same_bits(rewind::linear(x, w, bias, Epilogue::relu), from<double>({11, 22, 0, 13, 24, 0}, {1, 2, 3})));
  CHECK(same_bits(rewind::linear(x, w, bias, Epilogue::relu6), from<double>({6, 6, 0, 6, 6, 0}, {1, 2, 3})));
  CHECK(close(rewind::linear(x, w), rewind::matmul(x, w, false, true)));
}

TEST_CASE("conv2d sums the window") {
  const Tensor x = rewind::view_as(rewind::arange(16, rewind::float64), {1, 4, 4, 1}),
               ones = rewind::ones({1, 3, 3, 1}, rewind::float64);
  CHECK(same_bits(rewind::conv2d(x, ones), from<double>({45, 54, 81, 90}, {1, 2, 2, 1})));
  CHECK(same_bits(rewind::conv2d(x, ones, {}, {.stride = 2, .padding = 1}), from<double>({10, 24, 51, 90}, {1, 2, 2, 1})));
  CHECK(same_bits(rewind::conv2d(x, rewind::ones({1, 2, 2, 1}, rewind::float64), {}, {.dilation = 3}),
                  from<double>({30}, {1, 1, 1, 1})));
}

TEST_CASE("a 1x1 convolution is linear over pixels, gradients and all") {
  const Tensor x = leaf({2, 3, 4, 5}), w = leaf({6, 1, 1, 5}, 1), bias = leaf({6}, 2), v = sample({2, 3, 4, 6}, -1, 1, 3);
  const Tensor flat = view_as(w, {6, 5}).clone().set_requires_grad();
  const Tensor y = rewind::conv2d(x, w, bias), z = rewind::linear(x, flat, bias);
  CHECK(close(y, z));
  const auto gy = gradients(y, v, {x, w, bias}), gz = gradients(z, v, {x, flat, bias});
  CHECK(close(gy[0], gz[0]));
  CHECK(close(view_as(gy[1], {6, 5}), gz[1]));
  CHECK(close(gy[2], gz[2]));
}

TEST_CASE("a convolution whose kernel covers the image is linear on the flattened image") {
  const Tensor x = leaf({3, 4, 5, 2}), w = leaf({3, 4, 5, 2}, 1), v = sample({3, 1, 1, 3}, -1, 1, 2);
  const Tensor flat_x = view_as(x, {3, 40}).clone().set_requires_grad(), flat_w = view_as(w, {3, 40}).clone().set_requires_grad();
  const Tensor y = rewind::conv2d(x, w), z = rewind::linear(flat_x, flat_w);
  CHECK(close(view_as(y, {3, 3}), z));
  const auto gy = gradients(y, v, {x, w}), gz = gradients(z, view_as(v, {3, 3}), {flat_x, flat_w});
  CHECK(close(view_as(gy[0], {3, 40}), gz[0]));
  CHECK(close(view_as(gy[1], {3, 40}), gz[1]));
}

TEST_CASE("depthwise equals grouped convolution, gradients and all") {
  const struct {
    Shape x;
    int kernel;
    DepthwiseOptions options;
  } cases[] = {{{2, 6, 5, 3}, 3, {.padding = 1}},
               {{1, 7, 7, 18}, 3, {.stride = 2, .padding = 1}},
               {{1, 6, 7, 4}, 5, {.stride = 2, .padding = 2}},
               {{2, 7, 6, 2}, 3, {.padding = 2, .dilation = 2}},
               {{1, 5, 5, 2}, 2, {.stride = {3, 1}}}};
  for (const auto& c : cases) {
    const std::int64_t channels = c.x[3], taps = std::int64_t{c.kernel} * c.kernel;
    const Tensor x = leaf(c.x), bias = leaf({channels}, 2), w = leaf({c.kernel, c.kernel, channels}, 1);
    const Tensor grouped = view_as(transposed(view_as(w, {taps, channels})), {channels, c.kernel, c.kernel, 1}).set_requires_grad();
    const Tensor y = rewind::depthwise_conv2d(x, w, bias, c.options);
    const Tensor z =
        rewind::conv2d(x, grouped, bias, {c.options.stride, c.options.padding, c.options.dilation, static_cast<int>(channels)});
    CHECK(close(y, z));
    const Tensor v = sample(y.shape(), -1, 1, 3);
    const auto gy = gradients(y, v, {x, w, bias}), gz = gradients(z, v, {x, grouped, bias});
    CHECK(close(gy[0], gz[0]));
    CHECK(close(transposed(view_as(gy[1], {taps, channels})), view_as(gz[1], {channels, taps})));
    CHECK(close(gy[2], gz[2]));
  }
}

TEST_CASE("one depthwise gradient alone has the same bits as both together") {
  const Tensor x = sample({2, 6, 5, 3}), w = sample({3, 3, 3}, -1, 2, 1), v = sample({2, 3, 3, 3}, -1, 1, 2);
  const auto wanted = [&](bool of_x, bool of_w) {
    Tensor a = x.clone().set_requires_grad(of_x), b = w.clone().set_requires_grad(of_w);
    rewind::backward(rewind::depthwise_conv2d(a, b, {}, {.stride = 2, .padding = 1}), v);
    return std::vector<Tensor>{a.grad(), b.grad()};
  };
  const auto both = wanted(true, true);
  CHECK(same_bits(wanted(true, false)[0], both[0]));
  CHECK(same_bits(wanted(false, true)[1], both[1]));
}

TEST_CASE("the convolution of a shifted image is the shifted convolution") {
  const Tensor w = sample({2, 3, 3, 2}, -1, 2, 1);
  Tensor x = sample({1, 9, 6, 2});  // rows 1 .. 8 are the image moved up by one
  const Tensor here = rewind::conv2d(view_as(view_rows(view_as(x, {9, 12}), 0, 8), {1, 8, 6, 2}), w);
  const Tensor moved = rewind::conv2d(view_as(view_rows(view_as(x, {9, 12}), 1, 9), {1, 8, 6, 2}), w);
  CHECK(close(view_rows(view_as(here, {6, 8}), 1, 6), view_rows(view_as(moved, {6, 8}), 0, 5)));
}

TEST_CASE("a fused activation is the activation after the op, value and gradient") {
  for (const Epilogue e : {Epilogue::relu, Epilogue::relu6}) {
    const auto plain = [&](Tensor t) { return e == Epilogue::relu ? rewind::relu(std::move(t)) : rewind::relu6(std::move(t)); };
    const Tensor x = leaf({2, 5, 4, 3}), w = leaf({4, 3, 3, 3}, 1), bias = leaf({4}, 2), v = sample({2, 5, 4, 4}, -1, 1, 3);
    const Tensor fused = rewind::conv2d(x, w, bias, {.padding = 1, .epilogue = e}),
                 apart = plain(rewind::conv2d(x, w, bias, {.padding = 1}));
    CHECK(same_bits(fused, apart));
    const auto a = gradients(fused, v, {x, w, bias}), b = gradients(apart, v, {x, w, bias});
    for (std::size_t i = 0; i < 3; ++i) CHECK(same_bits(a[i], b[i]));

    const Tensor rows = leaf({7, 5}), weight = leaf({6, 5}, 1), shift = leaf({6}, 2), u = sample({7, 6}, -1, 1, 3);
    const Tensor y = rewind::linear(rows, weight, shift, e), z = plain(rewind::linear(rows, weight, shift));
    CHECK(same_bits(y, z));
    const auto gy = gradients(y, u, {rows, weight, shift}), gz = gradients(z, u, {rows, weight, shift});
    for (std::size_t i = 0; i < 3; ++i) CHECK(same_bits(gy[i], gz[i]));
  }
}

TEST_CASE("max_pool2d takes the maximum, and its gradient goes to the first of equals") {
  const Tensor x = from<double>({1, 5, 2, 0, 5, 3, 2, 2, 7, 7, -1, -2, 7, 0, -3, -4}, {1, 4, 4, 1}).set_requires_grad();
  const Tensor y = rewind::max_pool2d(x);
  CHECK(same_bits(y, from<double>({5, 2, 7, -1}, {1, 2, 2, 1})));
  const Tensor g = gradients(y, from<double>({1, 2, 3, 4}, {1, 2, 2, 1}), {x})[0];
  CHECK(same_bits(g, from<double>({0, 1, 2, 0, 0, 0, 0, 0, 3, 0, 4, 0, 0, 0, 0, 0}, {1, 4, 4, 1})));
}

TEST_CASE("avg_pool2d is a depthwise convolution with equal weights, gradients and all") {
  const Tensor x = leaf({2, 7, 6, 3}), w = rewind::full({3, 2, 3}, 1.0 / 6, rewind::float64);
  const Tensor y = rewind::avg_pool2d(x, {.kernel = {3, 2}, .stride = 2, .padding = 1}),
               z = rewind::depthwise_conv2d(x, w, {}, {.stride = 2, .padding = 1});
  CHECK(close(y, z));
  const Tensor v = sample(y.shape(), -1, 1, 1);
  CHECK(close(gradients(y, v, {x})[0], gradients(z, v, {x})[0]));
}

TEST_CASE("global_avg_pool is avg_pool2d over the whole image, gradients and all") {
  const Tensor x = leaf({2, 3, 5, 4}), v = sample({2, 4}, -1, 1, 1);
  const Tensor y = rewind::global_avg_pool(x), z = rewind::avg_pool2d(x, {.kernel = {3, 5}});
  CHECK(close(y, view_as(z, {2, 4})));
  CHECK(close(gradients(y, v, {x})[0], gradients(z, view_as(v, {2, 1, 1, 4}), {x})[0]));
}

TEST_CASE("the mean of a large image in float32 is as exact as that of a small one") {
  const Tensor y = rewind::global_avg_pool(rewind::full({1, 1024, 1024, 1}, 0.1));
  CHECK(static_cast<double>(y.item()) == doctest::Approx(0.1).epsilon(1e-5));
}

TEST_CASE("a stride beyond the image is a window at its beginning, gradients too") {
  Tensor x = rewind::ones({1, 4, 4, 16}).set_requires_grad(), w = rewind::ones({2, 1, 1, 16}).set_requires_grad();
  const rewind::ConvOptions options{.stride = 100000};
  rewind::backward(rewind::sum(rewind::conv2d(x, w, {}, options)));
  CHECK(rewind::sum(x.grad()).item() == 32);
  CHECK(x.grad().to_vector<float>()[0] == 2);
  CHECK(rewind::sum(w.grad()).item() == 32);
}

TEST_CASE("multiplications are counted exactly") {
  const rewind::ShapesOnly shapes;
  const Tensor x = rewind::empty({1, 112, 112, 32});
  {
    const Counter dense;
    (void)rewind::conv2d(x, rewind::empty({64, 3, 3, 32}), {}, {.padding = 1});
    CHECK(dense.macs == 231211008);
    CHECK(dense.flops == 2 * dense.macs);
  }
  {
    const Counter separable;
    (void)rewind::conv2d(rewind::depthwise_conv2d(x, rewind::empty({3, 3, 32}), {}, {.padding = 1}), rewind::empty({64, 1, 1, 32}));
    CHECK(separable.macs == 29302784);
  }
  {
    const Counter grouped;
    (void)rewind::conv2d(x, rewind::empty({64, 3, 3, 8}), {}, {.stride = 2, .padding = 1, .groups = 4});
    CHECK(grouped.macs == 56 * 56 * 64 * 9 * 8);
  }
  {
    const Counter dense;
    (void)rewind::linear(rewind::empty({2, 3, 5}), rewind::empty({7, 5}), rewind::empty({7}));
    CHECK(dense.macs == 2 * 3 * 5 * 7);
    CHECK(dense.flops == 2 * dense.macs + 2 * 3 * 7);
  }
}

TEST_CASE("a backward step takes twice the multiplications of forward") {
  Tensor x = leaf({2, 6, 5, 4}), w = leaf({8, 3, 3, 2}, 1), d = leaf({3, 3, 8}, 2);
  Counter forward;
  Tensor y = rewind::depthwise_conv2d(rewind::conv2d(x, w, {}, {.stride = 2, .padding = 1, .groups = 2}), d, {}, {.padding = 1});
  const std::int64_t macs = forward.macs;
  const Tensor v = sample(y.shape());
  rewind::backward(std::move(y), v);
  CHECK(forward.macs == 3 * macs);
  CHECK(forward.names == std::vector<std::string>{"conv2d", "depthwise_conv2d", "depthwise_conv2d_backward",
                                                  "conv2d_backward_weight", "conv2d_backward_input"});
}

TEST_CASE("only what the wanted gradients need is saved") {
  const auto saved = [](bool x, bool w, Epilogue e) {
    const Tensor image = sample({1, 3, 3, 2}).set_requires_grad(x), weight = sample({2, 3, 3, 2}).set_requires_grad(w);
    const Counter counter;
    const Tensor y = rewind::conv2d(image, weight, {}, {.epilogue = e});
    return std::pair{counter.saved_inputs, counter.saved_outputs};
  };
  CHECK(saved(true, false, Epilogue::none) == std::pair{2U, 0U});
  CHECK(saved(false, true, Epilogue::none) == std::pair{1U, 0U});
  CHECK(saved(true, true, Epilogue::none) == std::pair{3U, 0U});
  CHECK(saved(false, true, Epilogue::relu6) == std::pair{1U, 1U});
  CHECK(saved(false, false, Epilogue::relu) == std::pair{0U, 0U});
}

TEST_CASE("an input is free before its gradient is made, and masking costs no buffer") {
  const rewind::ShapesOnly shapes;
  const Tensor w = rewind::zeros({16, 3, 3, 16}).set_requires_grad(), source = rewind::zeros({64, 32, 32, 16}).set_requires_grad();
  Tensor y = rewind::conv2d(2 * source, w, {}, {.padding = 1, .epilogue = Epilogue::relu});
  Tensor g = rewind::empty(y.shape());
  const rewind::memory::Scope scope;
  rewind::backward(std::move(y), std::move(g));
  // x, y and g are there before. The mask falls into y or g and the other goes, then dx takes the place of x.
  CHECK(scope.peak().total == scope.before().total);
}

TEST_CASE("a dry run takes exactly the bytes of a real one, workspaces included") {
  const auto peak = [] {
    const rewind::memory::Scope scope;
    const auto parameter = [](const Shape& shape) { return rewind::zeros(shape).set_requires_grad(); };
    const Tensor w1 = parameter({8, 3, 3, 3}), w2 = parameter({3, 3, 8}), w3 = parameter({10, 8}), bias = parameter({10}),
                 strided = parameter({8, 3, 3, 4});
    Tensor h = rewind::conv2d(rewind::zeros({2, 17, 17, 3}), w1, {}, {.stride = 2, .padding = 1, .epilogue = Epilogue::relu6});
    h = rewind::depthwise_conv2d(std::move(h), w2, {}, {.padding = 1});
    h = rewind::conv2d(std::move(h), strided, {}, {.padding = 1, .groups = 2});
    h = rewind::max_pool2d(std::move(h), {.kernel = 3, .stride = 2, .padding = 1});
    h = rewind::linear(rewind::global_avg_pool(rewind::avg_pool2d(std::move(h))), w3, bias, Epilogue::relu);
    Tensor v = rewind::zeros(h.shape());
    rewind::backward(std::move(h), std::move(v));
    rewind::memory::Usage usage = scope.peak();
    for (std::size_t& bytes : usage.bytes) bytes -= scope.before().bytes[&bytes - usage.bytes];
    usage.total -= scope.before().total;
    return usage;
  };
  const rewind::memory::Usage real = peak();
  const rewind::ShapesOnly shapes;
  CHECK(peak() == real);
  CHECK(real[rewind::Category::workspace] > 0);
}

TEST_CASE("contractions and pools can be differentiated twice") {
  const auto twice = [](auto f, const std::vector<Tensor>& inputs) {
    const rewind::GradcheckResult result = rewind::gradcheck(f, inputs, {.second_order = true});
    INFO(result.message);
    CHECK(result.ok);
  };
  // Squares make the outer derivative depend on the inner one.
  using In = std::vector<Tensor>;
  twice([](In in) { return rewind::square(rewind::matmul(in[0], in[1])); }, {sample({2, 3}), sample({3, 2}, -1, 1, 1)});
  twice([](In in) { return rewind::square(rewind::matmul(in[0], in[1], true, true)); },
        {sample({2, 3, 2}), sample({2, 3}, -1, 1, 1)});
  twice([](In in) { return rewind::square(rewind::matmul(in[0], in[1])); }, {sample({3, 2}), sample({2, 2, 2}, -1, 1, 1)});
  twice([](In in) { return rewind::square(rewind::linear(in[0], in[1], in[2])); },
        {sample({2, 2, 3}), sample({2, 3}, -1, 1, 1), sample({2}, -1, 1, 2)});
  twice([](In in) { return rewind::linear(rewind::square(in[0]), rewind::square(in[1]), {}, Epilogue::relu); },
        {sample({3, 3}), sample({2, 3}, 1, 2, 1)});
  twice([](In in) { return rewind::square(rewind::conv2d(in[0], in[1], in[2], {.stride = 2, .padding = 1, .groups = 2})); },
        {sample({1, 3, 4, 2}), sample({2, 3, 3, 1}, -1, 1, 1), sample({2}, -1, 1, 2)});
  twice([](In in) { return rewind::square(rewind::conv2d(in[0], in[1], {}, {.padding = 2, .dilation = 2})); },
        {sample({1, 3, 3, 1}), sample({2, 2, 3, 1}, -1, 1, 1)});
  twice([](In in) { return rewind::square(rewind::depthwise_conv2d(in[0], in[1], in[2], {.stride = 2, .padding = 1})); },
        {sample({1, 4, 3, 2}), sample({3, 3, 2}, -1, 1, 1), sample({2}, -1, 1, 2)});
  twice([](In in) { return rewind::max_pool2d(rewind::square(in[0]), {.kernel = 2, .stride = 1}); }, {sample({1, 3, 3, 2}, 1, 3)});
  twice([](In in) { return rewind::square(rewind::avg_pool2d(in[0], {.kernel = 3, .stride = 2, .padding = 1})); },
        {sample({1, 4, 4, 1})});
  twice([](In in) { return rewind::square(rewind::global_avg_pool(in[0])); }, {sample({2, 2, 3, 2})});
}

TEST_CASE("the second derivative of a convolution is a convolution") {
  const Tensor x = leaf({2, 5, 5, 2}), w = leaf({3, 3, 3, 2}, 1), v = sample({2, 3, 3, 3}, -1, 1, 2).set_requires_grad(),
               u = sample({2, 5, 5, 2}, -1, 1, 3);
  const ConvOptions options{.stride = 2, .padding = 1};
  const Tensor y = rewind::conv2d(x, w, {}, options);
  const Tensor dx = gradients(y, v, {x}, true)[0];
  // <u, dx(v, w)> = <conv(u, w), v>, so its gradients are those of conv(u, w).
  const auto second = gradients(dx, u, {v, w});
  const Tensor z = rewind::conv2d(u, w, {}, options);
  CHECK(close(second[0], z));
  CHECK(close(second[1], gradients(z, v.detach(), {w})[0]));
}

TEST_CASE("errors of contractions and pools name the op, the shapes and the way out") {
  const Tensor x = sample({1, 5, 5, 4});
  CHECK(error_of([] {
          rewind::matmul(sample({2, 3}), sample({2, 3}));
        }) == "matmul: inner extents differ, 3 and 2: a [2, 3] and b [2, 3]; look at the transpose flags");
  CHECK(error_of([] {
          rewind::linear(sample({2, 3}), sample({3, 4}));
        }) == "linear: the last axis of x must be the 4 columns of w, but x is [2, 3] and w is [3, 4]; w is [out, in]");
  CHECK(error_of([&] {
          rewind::conv2d(x, sample({2, 4, 3, 3}));
        }) ==
        "conv2d: x has 4 channels, so the last axis of w must be 4, not 3: x [1, 5, 5, 4], w [2, 4, 3, 3], stride 1x1, padding "
        "0x0, dilation 1x1, "
        "groups 1; images are [N, H, W, C] and w is [out, KH, KW, in / groups]");
  CHECK(error_of([&] {
          rewind::depthwise_conv2d(x, sample({7, 7, 4}), {}, {.padding = {0, 1}});
        }) ==
        "depthwise_conv2d: the kernel covers 7x7 pixels, but the padded image has 5x7: x [1, 5, 5, 4], w [7, 7, 4], stride 1x1, "
        "padding 0x1, "
        "dilation 1x1; pad more, or use a smaller kernel (images are [N, H, W, C])");
  CHECK(error_of([&] { rewind::max_pool2d(x, {.kernel = 2, .stride = 2, .padding = 2}); }) ==
        "max_pool2d: padding must be smaller than the kernel, or windows see nothing but padding: x [1, 5, 5, 4], kernel 2x2, "
        "stride 2x2, padding 2x2");
  CHECK(error_of([&] { rewind::global_avg_pool(sample({2, 3})); }) == "global_avg_pool: x must be [N, H, W, C], but is [2, 3]");
}
