// The machine that the host tool works on: one range of memory, all layers up, and processors, of which this thread
// is the first and the others are threads to be.

import HostMachine
import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import Workloads

/// One simulated machine.
final class ToolMachine {
  private let host: SimulatedMachine
  private let workspace: UnsafeMutableRawPointer
  let memory: MemorySystem

  /// With `threads`, so many more processors, for threads.
  init(memory size: ByteCount, threads: Int = 0) throws {
    guard size >= .mebibytes(4), size <= .gibibytes(64) else {
      throw Complaint("--memory is 4M to 64G", .unavailable)
    }
    host = SimulatedMachine(memory: size, processors: threads + 1)
    host.hasOtherThreads = threads > 0
    let bytes = Int(MemorySystem.workspaceSize(ranges: 1).rawValue)
    workspace = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 64)
    workspace.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
    memory = try MemorySystem.assemble(
      BootRequest(machine: host.machine, workspace: workspace, firmwareRangeCount: 1),
      firmware: { _ in
        FirmwareRange(base: PhysicalAddress(1 << 20), length: size - .mebibytes(1), kind: .usable)
      })
  }

  deinit { workspace.deallocate() }

  /// Runs `body` as each of `count` processors at once, on threads of their own.
  func onProcessors(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) { host.onThreads(count, body) }

  /// The way to an interrupt handler, for a thread of this machine.
  var interrupts: InterruptGate {
    InterruptGate(Unmanaged.passUnretained(host).toOpaque()) { host, body, argument in
      Unmanaged<SimulatedMachine>.fromOpaque(host!).takeUnretainedValue().interrupt(argument, body)
    }
  }
}
