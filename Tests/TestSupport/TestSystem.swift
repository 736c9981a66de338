// All layers over a simulated machine: the system that tests of the upper layers run on.
//
// With a swap disk, the core's sleeps run the disks. A software processor reaches pageable memory by the tables,
// through a translation buffer that shootdowns empty, so a mapping that is changed without one leads to the wrong
// frame. The swap disk keeps a list of its requests. A test may step in at three moments: before a request is
// carried out (`atPoll`), when translations are shot down (`atShootDown`), and whenever interrupts are switched on
// again, which is where another processor may have done anything (`preempting`).

import BlockDevices
import CPlatform
import ContiguousMemory
import HostMachine
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Workloads
import XCTest

package final class TestSystem: @unchecked Sendable {
  private let system: HostSystem
  private let bufferStorage: UnsafeMutableRawPointer
  package let buffer: TranslationBuffer
  package let processor: SoftwareProcessor
  private var swap: RecordedDisk?
  private var otherDisks: [RecordedDisk] = []

  /// Called before a disk carries out a request, but not for requests that the hook causes itself.
  package var atPoll: (() -> Void)?
  /// Called when translations were shot down.
  package var atShootDown: (() -> Void)?
  package private(set) var shootdowns = 0
  package private(set) var polls = 0
  private var isInside = false

  package var host: SimulatedMachine { system.host }
  package var memory: MemorySystem { system.memory }
  package var physical: FrameAllocator { memory.physical }
  package var tables: PageMap { memory.pageTables }
  package var space: KernelAddressSpace { memory.space }
  package var kmem: KmemAllocator { memory.kmem }
  package var paging: PagedMemory { memory.paging }
  package var contiguous: ContiguousAllocator { memory.contiguous }
  /// The swap disk of a system that was made with one.
  package var swapDisk: RecordedDisk { swap! }
  package var disk: FaultyDisk { swapDisk.disk }

  /// All layers over `host`; with `swap`, a disk of so many pages, which `attaches` makes the swap device.
  package init(
    on host: SimulatedMachine, _ options: HostSystem.Options, swap pages: UInt64? = nil,
    attaches: Bool = true, activate: (PhysicalAddress) -> Void = { _ in }
  ) throws {
    system = try HostSystem(on: host, options, activate: activate)
    bufferStorage = .allocate(byteCount: Int(TranslationBuffer.size.rawValue), alignment: 64)
    buffer = TranslationBuffer(bufferStorage)
    processor = SoftwareProcessor(
      directMap: host.machine.directMap, tables: system.memory.pageTables, paging: system.memory.paging,
      buffer: buffer)
    XCTAssertTrue(system.isWorkspaceIntact, "a layer has written past its workspace")
    guard let pages else { return }
    let disk = RecordedDisk(pages, host.machine)
    swap = disk
    listen()
    host.runDevices = { [unowned self] in poll() }
    if attaches { try paging.attachSwap(disk.device) }
  }

  deinit {
    if cp_processor().pointee.invalidate_context == Unmanaged.passUnretained(self).toOpaque() {
      cp_processor().pointee.invalidate = nil
      cp_processor().pointee.find_frame = nil
      cp_processor().pointee.root = nil
      cp_processor().pointee.invalidate_context = nil
    }
    bufferStorage.deallocate()
  }

  // MARK: Common systems

  /// The system that a user gets: memory from 1 MiB on, one processor, and `threads` more for threads.
  package convenience init(memory size: ByteCount, threads: Int = 0) throws {
    let host = SimulatedMachine(memory: size, processors: threads + 1)
    host.hasOtherThreads = threads > 0
    try self.init(on: host, HostSystem.Options())
  }

  /// `size` bytes of memory from 0 on, all of it usable, and two processors.
  package convenience init(_ size: ByteCount, largestLeaf: LargestLeaf = .mebibytes2) throws {
    var options = HostSystem.Options()
    options.largestLeaf = largestLeaf
    try self.init(
      on: SimulatedMachine(memory: size, processors: 2), options.over([usable(0, size.rawValue)]))
  }

  /// Memory in the given runs of frames (first, count), and a swap disk of `swap` pages.
  package convenience init(
    runs: [(UInt64, UInt64)], swap: UInt64 = 4096, attaches: Bool = true, processors: Int = 1
  ) throws {
    let top = runs.map { $0.0 + $0.1 }.max()!
    try self.init(
      on: SimulatedMachine(memory: ByteCount(top << 12), processors: processors),
      HostSystem.Options().over(runs.map { usable($0.0 << 12, $0.1 << 12) }), swap: swap,
      attaches: attaches)
  }

  /// Memory in `frames` frames from frame 1 on, and a swap disk of `swap` pages.
  package convenience init(
    frames: UInt64 = 1024, swap: UInt64 = 4096, attaches: Bool = true, processors: Int = 1
  ) throws {
    try self.init(runs: [(1, frames)], swap: swap, attaches: attaches, processors: processors)
  }

  // MARK: Devices

  /// From here on, this thread's invalidations empty this system's buffer, and its page windows are read through it.
  package func listen() {
    cp_processor().pointee.root = UnsafeRawPointer(host.machine.directMap.pointer(to: tables.root))
    cp_processor().pointee.find_frame = { context, address, isWrite in
      let system = Unmanaged<TestSystem>.fromOpaque(context!).takeUnretainedValue()
      let frame = system.buffer.reach(VirtualAddress(address), isWrite ? .write : .read, system.tables)
      return (frame ?? .none).rawValue
    }
    cp_processor().pointee.invalidate_context = Unmanaged.passUnretained(self).toOpaque()
    cp_processor().pointee.invalidate = { context, address in
      let system = Unmanaged<TestSystem>.fromOpaque(context!).takeUnretainedValue()
      if address == .max {
        system.buffer.invalidate(0, 1 << 52)
      } else {
        system.buffer.invalidate(address, 1)
      }
      system.shootdowns += 1
      system.inside(system.atShootDown)
    }
  }

  private func inside(_ hook: (() -> Void)?) {
    guard let hook, !isInside else { return }
    isInside = true
    hook()
    isInside = false
  }

  private func poll() -> Bool {
    polls += 1
    inside(atPoll)
    var isAlive = disk.poll()
    for other in otherDisks where other.disk.poll() { isAlive = true }
    return isAlive
  }

  /// A further disk of `pages` pages, which the core's sleeps run too.
  package func makeDisk(_ pages: UInt64) -> RecordedDisk {
    let disk = RecordedDisk(pages, host.machine)
    otherDisks.append(disk)
    return disk
  }

  // MARK: Frames

  /// Allocates single frames until `count` are left, or none can be had.
  package func takeAll(leaving count: UInt64 = 0, role: FrameRole = .loaned) -> [FrameNumber] {
    var frames: [FrameNumber] = []
    while physical.freeCount.rawValue > count,
      let frame = try? physical.allocate(BlockOrder(0), role: role, priority: .interrupt)
    {
      frames.append(frame)
    }
    return frames
  }

  /// Frees single frames.
  package func giveBack(_ frames: [FrameNumber]) {
    for frame in frames { physical.free(FrameRun(first: frame, count: .one)) }
  }

  /// The bytes of a frame, as a device sees them.
  package func words(_ frame: FrameNumber) -> UnsafeMutablePointer<UInt64> {
    host.machine.directMap.pointer(to: frame).assumingMemoryBound(to: UInt64.self)
  }

  /// Checks all invariants.
  package func check(
    _ note: @autoclosure () -> String = "", _ file: StaticString = #filePath, _ line: UInt = #line
  ) {
    if let broken = memory.checkInvariants() { XCTFail("\(broken). \(note())", file: file, line: line) }
  }
}

extension HostSystem.Options {
  /// The same over this firmware map, with low memory in use as all other memory is.
  package func over(_ firmware: [FirmwareRange]) -> HostSystem.Options {
    var options = self
    options.firmware = firmware
    options.rules.lowMemory = .all
    return options
  }
}

/// A usable range of a firmware map.
package func usable(_ base: UInt64, _ length: UInt64) -> FirmwareRange {
  FirmwareRange(base: PhysicalAddress(base), length: ByteCount(length), kind: .usable)
}

/// A reserved range of a firmware map.
package func reserved(_ base: UInt64, _ length: UInt64) -> FirmwareRange {
  FirmwareRange(base: PhysicalAddress(base), length: ByteCount(length), kind: .reserved)
}
