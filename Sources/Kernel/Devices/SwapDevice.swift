// The swap device of this machine: a RAM disk in the memory that the command line set aside. And the page faults
// that bring pages back from it.
//
// The disk completes requests when it is polled, which is when a thread sleeps or rests.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Synchronization

enum SwapDevice {
  /// What the last access of `load` or `store` that failed came to, for whoever made it.
  private static let lastError = Atomic<UInt8>(0)

  /// Lets faults on pageable memory be resolved, and attaches the disk, if there is one. At boot.
  static func start(_ memory: KernelMemory) {
    PageFaults.install(
      nil,
      // Only pageable pages have prepared places.
      owns: { _, address in Assembly.memory?.pageTables.isPrepared(VirtualAddress(address)) ?? false },
      resolve: { _, address, access in SwapDevice.resolve(address, access == .write ? .write : .read) })
    guard memory.setAside.count > 0 else { return }
    do throws(PagingError) {
      try memory.paging.attachSwap(disk(memory).device)
    } catch {
      Reports.panic("a machine that Strata refuses", "no memory is left for the tables of its swap disk")
    }
  }

  private static func resolve(_ address: UInt64, _ kind: AccessKind) -> cp_fault_answer {
    guard let paging = Assembly.memory?.paging else { return .notMine }
    do throws(PagingError) {
      try paging.fault(VirtualAddress(address), kind)
      return .resolved
    } catch {
      lastError.store(error.rawValue, ordering: .relaxed)
      return error == .notPageable ? .notMine : .failed(error.words)
    }
  }

  private static func disk(_ memory: KernelMemory) -> RamDisk {
    let room: FrameRun
    do throws(PhysicalMemoryError) {
      room = try memory.physical.allocate(run: RamDisk.stateSize.pagesRoundedUp, role: .boot)
    } catch {
      Reports.panic("a machine that Strata refuses", "it is too small: the swap disk finds no room")
    }
    let map = memory.machine.directMap
    var extents = InlineArray<8, RamDisk.Extent>(
      repeating: RamDisk.Extent(map.pointer(to: FrameNumber(0)), .zero))
    for i in 0..<memory.setAside.count {
      extents[i] = RamDisk.Extent(map.pointer(to: memory.setAside[i].first), memory.setAside[i].count)
    }
    let disk = withUnsafeMutablePointer(to: &extents) { array in
      let first = UnsafeMutableRawPointer(array).assumingMemoryBound(to: RamDisk.Extent.self)
      return RamDisk.create(
        in: map.pointer(to: room.first), Name("ram"), machine: memory.machine,
        over: UnsafeBufferPointer(start: first, count: memory.setAside.count))
    }
    Pollers.add(UnsafeMutableRawPointer(disk.place)) { context in
      RamDisk(at: context.unsafelyUnwrapped).poll() ? .busy : .idle
    }
    return disk
  }

  // MARK: Accesses that may fail

  /// Reads a word as any instruction does, page fault and all; 0, or one more than the number of the error.
  static func load(_ address: UInt64, _ value: UnsafeMutablePointer<UInt64>) -> UInt8 {
    cp_try_load(address, value) ? 0 : lastError.load(ordering: .relaxed) + 1
  }
  static func store(_ address: UInt64, _ value: UInt64) -> UInt8 {
    cp_try_store(address, value) ? 0 : lastError.load(ordering: .relaxed) + 1
  }
}
