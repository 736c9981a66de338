// The memory system that the host tool works on: one range of memory, all layers up, and processors, of which this
// thread is the first and the others are for threads.

import Foundation
import HostMachine
import MemoryPrimitives
import Workloads

/// Throws where a limit of this process leaves no addresses for a simulated machine with so much memory.
func checkAddressSpace(_ size: ByteCount) throws {
  // The machine aligns its memory to a gibibyte.
  let length = Int(size.rawValue) + (1 << 30)
  let mapping = mmap(nil, length, PROT_NONE, Int32(MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE), -1, 0)
  guard mapping != MAP_FAILED else {
    throw Complaint.system("no addresses for a simulated machine of \(size.rawValue >> 20) MiB", .unavailable)
  }
  munmap(mapping, length)
}

extension HostSystem {
  /// A system with as much memory as `--memory` says, and `threads` more processors for threads.
  convenience init(toolMemory size: ByteCount, threads: Int = 0) throws {
    guard size >= .mebibytes(4), size <= .gibibytes(64) else {
      throw Complaint("--memory is 4M to 64G", .unavailable)
    }
    try checkAddressSpace(size)
    var options = Options()
    options.threads = threads
    try self.init(memory: size, options)
  }

  /// Runs `body` as each of `count` processors at once, on threads of their own.
  func onProcessors(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) { host.onThreads(count, body) }

  /// The way to an interrupt handler, for a thread of this machine.
  var interrupts: InterruptGate {
    InterruptGate(Unmanaged.passUnretained(host).toOpaque()) { host, body, argument in
      Unmanaged<SimulatedMachine>.fromOpaque(host!).takeUnretainedValue().interrupt(argument, body)
    }
  }
}
