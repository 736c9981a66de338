// All layers over a simulated machine with a swap disk, for the tests of paging and of contiguous memory.
//
// The core's sleeps run the disks. A software processor reaches pageable memory by the tables, through a
// translation buffer that shootdowns empty, so a mapping changed without one leads to the wrong frame. Each
// request to the swap disk is kept, and at three moments a test may step in: before a request is carried out
// (`atPoll`), when translations are shot down (`atShootDown`), and whenever interrupts are switched on again, which
// is where another processor may have done anything (`preempting`).

import CPlatform
import ContiguousMemory
import Foundation
import HostMachine
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Workloads
import XCTest

@testable import Paging

/// An object and a range that shows it, or a part of it.
struct Area: @unchecked Sendable {
  var object: MemoryObject
  var address: VirtualAddress
  var count: UInt64
  /// The first page of the object that the range shows.
  var offset: UInt64 = 0

  subscript(page: UInt64) -> VirtualAddress { address + PageCount(page) }
}

/// A request that was made to a disk.
struct DiskRequest {
  var isWrite: Bool
  var first: UInt64
  var frames: [FrameNumber]
}

/// A RAM disk over memory of its own that keeps what it was asked for.
final class RecordedDisk {
  let disk: RamDisk
  let memory: UnsafeMutableRawPointer
  let pages: UInt64
  private let room: UnsafeMutableRawPointer
  /// Several processors may submit at once.
  private let lock = NSLock()
  private var kept: [DiskRequest] = []

  init(_ pages: UInt64, _ machine: Machine) {
    self.pages = pages
    memory = .allocate(byteCount: Int(pages << 12), alignment: 4096)
    memory.initializeMemory(as: UInt8.self, repeating: 0x5a, count: Int(pages << 12))
    room = .allocate(byteCount: Int(RamDisk.stateSize.rawValue), alignment: 64)
    disk = RamDisk.create(
      in: room, Name("ram"), machine: machine, over: RamDisk.Extent(memory, PageCount(pages)))
  }

  deinit {
    memory.deallocate()
    room.deallocate()
  }

  var device: BlockDevice {
    BlockDevice(
      Name("ram"), pages: PageCount(pages), Unmanaged.passUnretained(self).toOpaque(),
      submit: { context, request in
        let this = Unmanaged<RecordedDisk>.fromOpaque(context!).takeUnretainedValue()
        let frames = UnsafeBufferPointer(start: cp_block_frames(request), count: Int(request.pointee.count))
        let note = DiskRequest(
          isWrite: request.pointee.operation == .write, first: request.pointee.first,
          frames: frames.map { FrameNumber($0) })
        this.lock.withLock { this.kept.append(note) }
        this.disk.device.submit(request)
      })
  }

  var requests: [DiskRequest] { lock.withLock { kept } }
  func discardHistory() { lock.withLock { kept = [] } }
  var written: [FrameNumber] { requests.filter(\.isWrite).flatMap(\.frames) }
  var readCount: Int { requests.filter { !$0.isWrite }.count }
  func words(_ page: UInt64) -> UnsafeMutablePointer<UInt64> {
    (memory + Int(page << 12)).assumingMemoryBound(to: UInt64.self)
  }
}

final class PagedSystem: @unchecked Sendable {
  let host: SimulatedMachine
  let memory: MemorySystem
  let swapDisk: RecordedDisk
  private(set) var otherDisks: [RecordedDisk] = []
  let processor: SoftwareProcessor
  let buffer: TranslationBuffer
  private let workspace: UnsafeMutableRawPointer
  private let bufferRoom: UnsafeMutableRawPointer

  /// Called before a disk carries a request out; not for what it brings about itself.
  var atPoll: (() -> Void)?
  /// Called when translations were shot down.
  var atShootDown: (() -> Void)?
  private(set) var shootdowns = 0
  private(set) var polls = 0
  private var isInside = false

  var physical: FrameAllocator { memory.physical }
  var paging: PagedMemory { memory.paging }
  var contiguous: ContiguousAllocator { memory.contiguous }
  var kmem: KmemAllocator { memory.kmem }
  var disk: RamDisk { swapDisk.disk }

  /// A machine whose memory are the given runs of frames (first, count), with a swap disk of `swap` pages.
  init(
    runs: [(UInt64, UInt64)], swap: UInt64 = 4096, attaches: Bool = true, processors: Int = 1
  ) throws {
    let top = runs.map { $0.0 + $0.1 }.max()!
    host = SimulatedMachine(memory: ByteCount(top << 12), processors: processors)
    let map = runs.map {
      FirmwareRange(
        base: PhysicalAddress($0.0 << 12), length: ByteCount($0.1 << 12), kind: .usable)
    }
    let bytes = Int(MemorySystem.workspaceSize(ranges: map.count).rawValue)
    workspace = .allocate(byteCount: bytes, alignment: 64)
    workspace.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
    var request = BootRequest(machine: host.machine, workspace: workspace, firmwareRangeCount: map.count)
    request.rules.lowMemory = .all
    memory = try MemorySystem.assemble(request, firmware: { map[$0] })
    swapDisk = RecordedDisk(swap, host.machine)
    bufferRoom = .allocate(byteCount: Int(TranslationBuffer.size.rawValue), alignment: 64)
    buffer = TranslationBuffer(bufferRoom)
    processor = SoftwareProcessor(
      directMap: host.machine.directMap, tables: memory.pageTables, paging: memory.paging, buffer: buffer)
    listen()
    host.runDevices = { [unowned self] in poll() }
    if attaches { try paging.attachSwap(swapDisk.device) }
  }

  /// A machine of `frames` frames from frame 1 on.
  convenience init(
    frames: UInt64 = 1024, swap: UInt64 = 4096, attaches: Bool = true, processors: Int = 1
  ) throws {
    try self.init(runs: [(1, frames)], swap: swap, attaches: attaches, processors: processors)
  }

  deinit {
    if cp_processor().pointee.invalidate_context == Unmanaged.passUnretained(self).toOpaque() {
      cp_processor().pointee.invalidate = nil
      cp_processor().pointee.invalidate_context = nil
    }
    workspace.deallocate()
    bufferRoom.deallocate()
  }

  /// From here on this thread's shootdowns empty this system's buffer.
  private func listen() {
    cp_processor().pointee.invalidate_context = Unmanaged.passUnretained(self).toOpaque()
    cp_processor().pointee.invalidate = { context, address in
      let system = Unmanaged<PagedSystem>.fromOpaque(context!).takeUnretainedValue()
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

  func makeDisk(_ pages: UInt64) -> RecordedDisk {
    let disk = RecordedDisk(pages, host.machine)
    otherDisks.append(disk)
    return disk
  }

  // MARK: Areas

  func area(_ count: UInt64, _ protection: Protection = .kernelData) throws -> Area {
    let object = try paging.createObject(Name("test"), PageCount(count))
    return try show(object, protection)
  }

  /// Another range that shows `count` pages of an object, by default all.
  func show(
    _ object: MemoryObject, _ protection: Protection = .kernelData, from offset: UInt64 = 0,
    _ count: UInt64? = nil
  ) throws -> Area {
    let count = count ?? object.pageCount.rawValue - offset
    let address = try paging.map(
      object, from: PageCount(offset), count: PageCount(count), protection: protection)
    return Area(object: object, address: address, count: count, offset: offset)
  }

  func hide(_ area: Area) { paging.unmap(area.address, PageCount(area.count)) }

  func release(_ area: Area) {
    hide(area)
    paging.destroy(area.object)
  }

  func place(_ area: Area, _ page: UInt64) -> PageDescription {
    paging.describe(area.object, page: area.offset + page)
  }
  func frame(_ area: Area, _ page: UInt64) -> FrameNumber { place(area, page).frame ?? .none }
  func mapping(_ area: Area, _ page: UInt64) -> PageMapping? {
    memory.pageTables.mapping(at: area[page])
  }

  // MARK: Stamps

  /// The bytes of a page that a stamp is in: at its ends and in between.
  private static let places: [UInt64] = [0, 1368, 2728, 4088]
  private static func word(_ stamp: UInt64, _ place: UInt64) -> UInt64 {
    stamp == 0 ? 0 : stamp &* 0x9e37_79b9_7f4a_7c15 ^ place
  }

  func write(_ area: Area, _ page: UInt64, _ stamp: UInt64) throws(PagingError) {
    for place in Self.places {
      try processor.store(area[page] + ByteCount(place), Self.word(stamp, place))
    }
  }

  /// Whether the page holds `stamp`; 0 for a page of zeroes.
  func holds(_ area: Area, _ page: UInt64, _ stamp: UInt64) throws(PagingError) -> Bool {
    for place in Self.places
    where try processor.load(area[page] + ByteCount(place)) != Self.word(stamp, place) {
      return false
    }
    return true
  }

  /// The same by the frame's own address, as a device sees it.
  func write(frame: FrameNumber, _ stamp: UInt64) {
    for place in Self.places { words(frame)[Int(place / 8)] = Self.word(stamp, place) }
  }
  func holds(frame: FrameNumber, _ stamp: UInt64) -> Bool {
    Self.places.allSatisfy { words(frame)[Int($0 / 8)] == Self.word(stamp, $0) }
  }

  /// Writes a stamp to each page: the first of them and its number.
  func fill(_ area: Area, from first: UInt64 = 1000) throws {
    for page in 0..<area.count { try write(area, page, first + area.offset + page) }
  }

  func verify(
    _ area: Area, from first: UInt64 = 1000, _ note: String = "", _ file: StaticString = #filePath,
    _ line: UInt = #line
  ) throws {
    for page in 0..<area.count {
      XCTAssertTrue(
        try holds(area, page, first + area.offset + page), "page \(page) \(note)", file: file, line: line)
    }
  }

  func words(_ frame: FrameNumber) -> UnsafeMutablePointer<UInt64> {
    host.machine.directMap.pointer(to: frame).assumingMemoryBound(to: UInt64.self)
  }

  // MARK: Memory

  /// Reclaims every page that can be.
  @discardableResult func launderAll() -> LaunderOutcome {
    var outcome = LaunderOutcome()
    for queue in [PageQueue.laundry, .inactive, .active] {
      let one = paging.launder(queue, upTo: PageCount(UInt64(1) << 30), referenced: .launder)
      outcome = outcome + one
    }
    return outcome
  }

  /// Allocates all free frames and frees them again: no cached page is left.
  func dropCached() { giveBack(takeAll()) }

  func takeAll(leaving count: UInt64 = 0, role: FrameRole = .loaned) -> [FrameNumber] {
    var frames: [FrameNumber] = []
    while physical.freeCount.rawValue > count,
      let frame = try? physical.allocate(Order(0), role: role, priority: .interrupt)
    {
      frames.append(frame)
    }
    return frames
  }

  func giveBack(_ frames: [FrameNumber]) {
    for frame in frames { physical.free(FrameRun(first: frame, count: .one)) }
  }

  /// Frames that the page daemon keeps free, a half of memory at most.
  func setTarget(_ pages: UInt64) {
    let rows = memory.statistics
    for i in 0..<rows.count where "\(rows[i].name)" == "vm.free_target" {
      XCTAssertEqual(rows[i].set(pages), .accepted)
    }
  }

  // MARK: Checks

  func check(
    _ note: @autoclosure () -> String = "", _ file: StaticString = #filePath, _ line: UInt = #line
  ) {
    if let broken = memory.checkInvariants() { XCTFail("\(broken). \(note())", file: file, line: line) }
  }

  /// The state that a refused operation must not change, and an undone one must restore.
  struct Picture: Equatable {
    var roles: [FrameRole: UInt64] = [:]
    var queues: [UInt64] = []
    var counts: [UInt64] = []
    var pages: [[UInt64]] = []
    var ranges: [[UInt64]] = []
    var kmem: UInt64 = 0
  }

  /// Frames by role, figures of paging and, if asked for, where each page is. Tags come and go by the page.
  func picture(pages: Bool = false) -> Picture {
    kmem.drain()
    var picture = Picture(kmem: kmem.usedBytes.rawValue)
    for number in 0..<UInt8(FrameRole.count) {
      let role = FrameRole(rawValue: number)!
      if role != .tags && role != .free { picture.roles[role] = physical.count(role).rawValue }
    }
    for number in 0..<UInt8(PageQueue.count) {
      picture.queues.append(paging.count(PageQueue(rawValue: number)!).rawValue)
    }
    let figures = paging.figures
    picture.counts = [
      figures.wired, figures.objects, figures.ranges, paging.swap.figures.used.rawValue,
      physical.cachedCount.rawValue, kmem.contiguousBytes.rawValue,
    ]
    guard pages else { return picture }
    paging.forEachObject { object in
      for page in 0..<object.pageCount.rawValue {
        let what = paging.describe(object, page: page)
        picture.pages.append([
          UInt64(object.number), page, UInt64(what.place.rawValue),
          UInt64(what.frame?.rawValue ?? 0), UInt64(what.flags.rawValue), UInt64(what.busyWord.rawValue),
          UInt64(what.queue?.rawValue ?? 9),
        ])
      }
    }
    paging.forEachRange { range in
      picture.ranges.append([range.address.rawValue, range.count.rawValue, UInt64(range.object)])
      for page in 0..<range.count.rawValue {
        let mapping = memory.pageTables.mapping(at: range.address + PageCount(page))
        picture.ranges.append([
          UInt64(mapping?.frame.rawValue ?? 0), mapping?.isWritable == true ? 1 : 0,
        ])
      }
    }
    return picture
  }

  /// Runs `body`, which is a caller's bug: it is reported as `kinds`, and nothing has changed.
  func expectFault(
    _ kinds: FaultKind..., file: StaticString = #filePath, line: UInt = #line, _ body: () throws -> Void
  ) rethrows {
    let before = picture(pages: true)
    let faults = try host.faults(in: body)
    XCTAssertEqual(faults.map(\.kind), kinds, file: file, line: line)
    XCTAssertSame(picture(pages: true), before, file: file, line: line)
    check("", file, line)
  }

  // MARK: Another processor

  /// Carries `act` out; `other` comes in between at the n-th moment (from 0) at which interrupts are switched on
  /// again, as if another processor did it then. Answers whether there was such a moment.
  func preempting(at n: Int, _ other: @escaping () -> Void, _ act: () throws -> Void) rethrows -> Bool {
    var moment = 0
    var happened = false
    try host.withInterrupts(
      seed: 0, oneIn: 1,
      handler: {
        if moment == n {
          happened = true
          other()
        }
        moment += 1
      }, act)
    return happened
  }
}

/// That `body` throws `expected`.
func XCTAssertFails<E: Error & Equatable>(
  _ expected: E, _ note: String = "", file: StaticString = #filePath, line: UInt = #line,
  _ body: () throws -> Void
) {
  do {
    try body()
    XCTFail("nothing thrown \(note)", file: file, line: line)
  } catch {
    XCTAssertEqual(error as? E, expected, note, file: file, line: line)
  }
}

/// That two pictures are the same; tells where they differ.
func XCTAssertSame(
  _ a: PagedSystem.Picture, _ b: PagedSystem.Picture, _ note: String = "", file: StaticString = #filePath,
  line: UInt = #line
) {
  guard a != b else { return }
  var text = note
  for (role, count) in a.roles where b.roles[role] != count {
    text += " \(role.description): \(count), not \(b.roles[role] ?? 0);"
  }
  func tell(_ what: String, _ a: [[UInt64]], _ b: [[UInt64]]) {
    if a.count != b.count { text += " \(what): \(a.count), not \(b.count);" }
    if let i = zip(a, b).enumerated().first(where: { $1.0 != $1.1 })?.offset {
      text += " \(what): \(a[i]), not \(b[i]), at \(i);"
    }
  }
  tell("queues", [a.queues], [b.queues])
  tell("counts", [a.counts], [b.counts])
  tell("pages", a.pages, b.pages)
  tell("ranges", a.ranges, b.ranges)
  if a.kmem != b.kmem { text += " kmem: \(a.kmem), not \(b.kmem)" }
  XCTFail("the pictures differ: \(text)", file: file, line: line)
}
