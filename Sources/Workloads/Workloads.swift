// Workloads: programs that drive a whole system, the same on a host and on bare metal.
//
// A *replay* (Replay/) repeats the allocations of a real kernel from a packed trace (Trace/) against the live
// allocators. A *seeded history* (Histories/, Paging/) is a long random sequence of operations that depends on its
// seed only and ends with a checksum. So "the kernel runs the same code as the tests" is an equation between two
// numbers. A *stress* (Processors/) runs all layers on several processors at once. Bench/ has the bodies of
// benchmarks. XCTest, the tool `strata` and the console all run these; none of them has a workload of its own.
//
// Everything here is core code: no Array, String or class, memory from the instance under test.

import MemoryPrimitives
