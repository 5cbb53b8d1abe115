#pragma once
// The UCI digits, 1797 handwritten digits of 8x8 pixels in 17 shades, are part of the library: no file is read.
//
// E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, its test
// set. CC BY 4.0; see data/digits/README.md.

#include <rewind/data/dataset.h>

namespace rewind_lib::data {

/// 1437 images to train on and 360 to test on, drawn once and for all: by the permutation of seed 0 of core/random.h. (In
/// the order of the repository a writer's digits stand together; cut there, the test would be on other writers, and harder.)
Split digits();

/// All 1797 in the order of the repository, which is scikit-learn's too.
Dataset all_digits();

}  // namespace rewind_lib::data
