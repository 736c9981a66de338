// The machine that the host tool works on: one processor, one stretch of memory, all floors up.

import HostMachine
import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import Workloads

/// One simulated machine.
final class SimulatedMachine {
  private let host: HostMachine
  private let workspace: UnsafeMutableRawPointer
  let memory: KernelMemory

  init(memory size: ByteCount) throws {
    guard size >= .mebibytes(4), size <= .gibibytes(64) else {
      throw Complaint("--memory is 4M to 64G", .unavailable)
    }
    host = HostMachine(memory: size)
    let bytes = Int(KernelMemory.workspaceSize(ranges: 1).rawValue)
    workspace = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 64)
    workspace.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
    memory = try KernelMemory.assemble(
      BootRequest(machine: host.machine, workspace: workspace, firmwareRangeCount: 1),
      firmware: { _ in
        FirmwareRange(base: PhysicalAddress(1 << 20), length: size - .mebibytes(1), kind: .usable)
      })
  }

  deinit { workspace.deallocate() }

  /// Large objects have addresses that only the instance's own page tables know.
  var access: WalkedAccess {
    WalkedAccess(directMap: host.machine.directMap, memory: host.memorySize, tables: memory.pageTables)
  }
}
