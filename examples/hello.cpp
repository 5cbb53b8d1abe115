// Hello: fits a line y = w x + b to noisy points by gradient descent.

#include <rewind/rewind.h>

#include <iostream>

namespace rw = rewind;

int main() {
  // 200 points on y = 3 x - 1, with noise.
  const rw::Tensor x = rw::uniform({200, 1}, -1, 1);
  const rw::Tensor y = 3.0 * x - 1.0 + 0.1 * rw::randn({200, 1});

  rw::nn::Linear line{1, 1};
  rw::optim::SGD sgd{line.parameters(), {.lr = 0.5}};

  for (int step = 0; step < 100; ++step) {
    rw::Tensor loss = rw::mse(line(x), y);
    if (step % 20 == 0) std::cout << "step " << step << "  loss " << loss.item() << "\n";
    rw::backward(std::move(loss));  // fills the gradients and frees the tape as it goes
    sgd.step();                     // moves the parameters and drops the gradients
  }

  for (const auto& [name, value] : line.parameters()) std::cout << name << " = " << value << "\n";
  std::cout << rw::memory::report();  // every byte has a category
}
