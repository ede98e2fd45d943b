// Choice of the kernels for this machine.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.h"

namespace lfm {

// Names of the tables that this build has and this CPU can run, the best first; the last is "scalar".
std::vector<std::string> AvailableKernels();

// Why kernels that this CPU has instructions for are not among them; empty where all are.
const char* RefusedKernels();

// The table called `name`, the best one where `name` is null or empty. Null where it is unknown or cannot run here.
const KernelTable* FindKernels(const char* name);

// The table that LFM_OPS_ISA names, the best one where the variable is not set.
// Throws std::runtime_error that names the choices where it cannot be had.
const KernelTable& SelectKernels();

}  // namespace lfm
