#define LANES portable
#include "step.h"

namespace lora_ft {
extern const Functions portable_functions{portable::run_step};
}  // namespace lora_ft
