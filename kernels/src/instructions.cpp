// The code of both stacks, for the instruction set that CMake names LANES.
#include "encoder.h"
#include "step.h"

namespace lora_ft::LANES {
extern const Functions functions{run_step, run_encoder};
}  // namespace lora_ft::LANES
