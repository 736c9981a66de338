// A simulated machine with pageable memory, for the experiments and self-tests of the tool.

import Foundation
import HostMachine
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory
import Workloads

/// A memory system with a swap disk and a software processor.
final class PagedMachine {
  private let system: HostSystem
  private let storage: [ZeroedStorage]
  private let place: UnsafeMutablePointer<SoftwareProcessor>

  var memory: MemorySystem { system.memory }
  /// Access to pageable memory, valid as long as this object.
  var access: WordAccess { WordAccess(place) }

  init(memory size: ByteCount, swap: ByteCount) throws {
    guard size >= .mebibytes(4), size <= .gibibytes(64), swap <= .gibibytes(64) else {
      throw Complaint("--memory is 4M to 64G, --swap up to 64G", .unavailable)
    }
    try checkAddressSpace(size + swap)
    // The disk lies behind the memory.
    let low = ByteCount.mebibytes(1)
    var options = HostSystem.Options()
    options.firmware = [
      FirmwareRange(base: PhysicalAddress(low.rawValue), length: size - low, kind: .usable)
    ]
    system = try HostSystem(memory: size + swap, options)
    let storage = [RamDisk.stateSize, TranslationBuffer.size].map { size in
      ZeroedStorage(byteCount: Int(size.rawValue))
    }
    self.storage = storage
    let (host, memory) = (system.host, system.memory)
    let directMap = host.machine.directMap
    let disk = RamDisk.create(
      in: storage[0].base, ShortName("ram"), machine: host.machine,
      over: RamDisk.Extent(directMap.pointer(to: PhysicalAddress(size.rawValue)), swap.pagesRoundedUp))
    host.runDevices = { disk.poll() }
    try memory.paging.attachSwap(disk.device)
    nonisolated(unsafe) let buffer = TranslationBuffer(storage[1].base)
    host.invalidate = { buffer.invalidate($0, $1) }
    place = .allocate(capacity: 1)
    place.initialize(
      to: SoftwareProcessor(
        directMap: directMap, tables: memory.pageTables, paging: memory.paging, buffer: buffer))
  }

  deinit { place.deallocate() }
}
