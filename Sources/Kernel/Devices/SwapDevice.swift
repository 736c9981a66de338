// The swap device of this machine: a RAM disk in the memory that the command line carved out.
//
// A thread of its own serves the disk, and sleeps until a request comes.

import BlockDevices
import CPlatform
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory

enum SwapDevice {
  /// Attaches the disk, if there is one. Called once, at boot.
  static func start(_ memory: MemorySystem) {
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
        submitRequest: { context, request in
          RamDisk(at: context.unsafelyUnwrapped).device.submit(request)
          SwapDevice.asked.wake(on: Executive.machine)
        })
      try memory.paging.attachSwap(device)
    } catch {
      Reports.panic("a machine that Strata refuses", "no memory is left for the tables of its swap disk")
    }
  }

  private static func disk(_ memory: MemorySystem) -> RamDisk {
    let state: FrameRun
    do throws(PhysicalMemoryError) {
      state = try memory.physical.allocate(
        run: RamDisk.stateSize.pagesRoundedUp, role: .boot,
        for: FrameOwner("RAM disk, its state"))
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

  /// The body of the disk's thread.
  private static func work(_ disk: RamDisk) {
    while true {
      let ticket = asked.ticket()
      if disk.poll() { Scheduler.yield() } else { _ = asked.sleep(ticket, on: Executive.machine) }
    }
  }
}
