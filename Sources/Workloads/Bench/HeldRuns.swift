// Contiguous runs that a bench holds, linked through their first words.

import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives

/// Runs that were allocated and are to be freed together.
struct HeldRuns {
  private struct Link {
    var next: VirtualAddress?
    var size: ByteCount
  }

  private let memory: MemorySystem
  let type: MemoryType
  private var first: VirtualAddress?

  init(_ memory: MemorySystem) {
    self.memory = memory
    type = memory.kmem.type(named: ShortName("bench"))
  }

  /// Holds a run that was requested with `size`.
  mutating func hold(_ range: ContiguousRange, _ size: ByteCount) {
    place(of: range.address).storeBytes(of: Link(next: first, size: size), as: Link.self)
    first = range.address
  }

  /// Frees all runs.
  mutating func release() {
    while let address = first {
      let link = place(of: address).load(as: Link.self)
      memory.contiguous.contigfree(address, size: link.size, type: type)
      first = link.next
    }
  }

  private func place(of address: VirtualAddress) -> UnsafeMutableRawPointer {
    WalkedAccess(memory).pointer(to: address)!
  }
}
