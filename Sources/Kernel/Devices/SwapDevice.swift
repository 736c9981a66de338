// The swap device of this machine: a RAM disk in the memory that the command line carved out. This file also connects
// page faults with paging, which brings pages back from the disk.
//
// A thread of its own serves the disk, and sleeps until a request comes.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory

enum SwapDevice {
  /// Installs the handler of page faults, and attaches the disk, if there is one. Called once, at boot.
  static func start(_ memory: MemorySystem) {
    PageFaults.install(
      nil,
      look: { _, address, access in
        let tables = Assembly.memory?.pageTables
        let verdict = tables?.verdict(onFault: VirtualAddress(address), access == .write ? .write : .read)
        return (verdict ?? .notPageable).rawValue
      },
      resolve: { _, address, access in SwapDevice.resolve(address, access == .write ? .write : .read) })
    guard memory.carveOut.count > 0 else { return }
    let disk = disk(memory)
    guard
      memory.machine.start(
        "ram disk", .service, UnsafeMutableRawPointer(disk.place),
        { SwapDevice.work(RamDisk(at: $0.unsafelyUnwrapped)) })
        != nil
    else {
      Reports.panic(
        "a machine that Strata refuses", "it is too small: there is no memory for the thread of its swap disk"
      )
    }
    do throws(PagingError) {
      let device = BlockDevice(
        ShortName("ram"), pages: disk.device.pageCount, UnsafeMutableRawPointer(disk.place),
        submit: { context, request in
          RamDisk(at: context.unsafelyUnwrapped).device.submit(request)
          SwapDevice.asked.wake(on: Executive.machine)
        })
      try memory.paging.attachSwap(device)
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
      Thread.current.record.pagingError = error.rawValue
      return error == .notPageable ? .notMine : .failed(error.description)
    }
  }

  private static func disk(_ memory: MemorySystem) -> RamDisk {
    let state: FrameRun
    do throws(PhysicalMemoryError) {
      state = try memory.physical.allocate(run: RamDisk.stateSize.pagesRoundedUp, role: .boot)
    } catch {
      Reports.panic(
        "a machine that Strata refuses", "it is too small: there is no memory for the state of its swap disk")
    }
    let map = memory.machine.directMap
    var extents = InlineArray<8, RamDisk.Extent>(
      repeating: RamDisk.Extent(map.pointer(to: FrameNumber(0)), .zero))
    for i in 0..<memory.carveOut.count {
      extents[i] = RamDisk.Extent(map.pointer(to: memory.carveOut[i].first), memory.carveOut[i].count)
    }
    let disk = withUnsafeMutablePointer(to: &extents) { array in
      let first = UnsafeMutableRawPointer(array).assumingMemoryBound(to: RamDisk.Extent.self)
      return RamDisk.create(
        in: map.pointer(to: state.first), ShortName("ram"), machine: memory.machine,
        over: UnsafeBufferPointer(start: first, count: memory.carveOut.count))
    }
    return disk
  }

  private static let asked = WaitQueue("a request", .thread)

  /// The body of the disk's thread. It polls a disk that delays its answers on purpose.
  private static func work(_ disk: RamDisk) {
    while true {
      let ticket = asked.ticket()
      if disk.poll() { Scheduler.yield() } else { _ = asked.sleep(ticket, on: Executive.machine) }
    }
  }

  // MARK: Accesses that may fail

  /// Reads a word, or all of a page, with page faults, as any instruction does. Answers 0, or one more than the
  /// number of the error.
  static func load(_ address: UInt64, _ value: UnsafeMutablePointer<UInt64>) -> UInt8 {
    cp_try_load(address, value) ? 0 : Thread.current.record.pagingError + 1
  }
  static func load(page address: UInt64, _ words: UnsafeMutablePointer<UInt64>) -> UInt8 {
    cp_try_load_page(address, words) ? 0 : Thread.current.record.pagingError + 1
  }
  static func store(_ address: UInt64, _ value: UInt64) -> UInt8 {
    cp_try_store(address, value) ? 0 : Thread.current.record.pagingError + 1
  }
}
