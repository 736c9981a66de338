// Pairs of kmem, an allocation and a free each: of sizes that the compiler knows, and of sizes that it does not.

import CPlatform
import KernelMemory
import Kmem
import MemoryPrimitives

/// The bench of one system's kmem.
package struct KmemPairBench {
  private let allocator: KmemBenchAllocator

  package init(_ memory: MemorySystem) {
    allocator = KmemBenchAllocator(memory.kmem, memory.kmem.type(named: ShortName("bench")))
  }

  /// Cycles of a pair. A size that is a literal in the source is known to the compiler.
  package var cyclesOf16: UInt64 { cycles { ObjectBench.pairs(allocator, 16, $0) } }
  package var cyclesOf64: UInt64 { cycles { ObjectBench.pairs(allocator, 64, $0) } }
  package var cyclesOf1024: UInt64 { cycles { ObjectBench.pairs(allocator, 1024, $0) } }
  package var cyclesOf4096: UInt64 { cycles { ObjectBench.pairs(allocator, 4096, $0) } }

  /// The cost of the most expensive size, of sizes that the compiler does not know.
  package var cyclesOfVariable: UInt64 {
    var most: UInt64 = 0
    for shift in 4...12 as ClosedRange<UInt64> {
      most = max(most, cycles { ObjectBench.variablePairs(allocator, 1 << shift, $0) })
    }
    return most
  }

  /// The cost of 4 KiB with interrupts off.
  package var cyclesWithInterruptsOff: UInt64 {
    let interrupts = cp_interrupts_disable()
    defer { cp_interrupts_restore(interrupts) }
    return cycles { ObjectBench.variablePairs(allocator, 4096, $0) }
  }

  /// Cycles of a pair, measured over a thousand in a row. An interrupt falls into few of five rows at most, so the
  /// least counts.
  private func cycles(_ body: (Int) -> Void) -> UInt64 {
    let count = 1000
    body(1)
    var least = UInt64.max
    for _ in 0..<5 {
      let start = cp_cycles()
      body(count)
      least = min(least, cp_cycles() &- start)
    }
    return least / UInt64(count)
  }
}
