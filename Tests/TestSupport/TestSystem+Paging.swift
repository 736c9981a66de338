// Pageable memory of a test system: areas, stamps, and pictures of its state.

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

/// An object and a range that shows it, or a part of it.
package struct Area: @unchecked Sendable {
  package var object: MemoryObject
  package var address: VirtualAddress
  package var count: UInt64
  /// The first page of the object that the range shows.
  package var offset: UInt64 = 0

  package init(object: MemoryObject, address: VirtualAddress, count: UInt64, offset: UInt64 = 0) {
    self.object = object
    self.address = address
    self.count = count
    self.offset = offset
  }

  package subscript(page: UInt64) -> VirtualAddress { address + PageCount(page) }
}

extension TestSystem {
  // MARK: Areas

  package func area(_ count: UInt64, _ protection: Protection = .kernelData) throws -> Area {
    let object = try paging.createObject(ShortName("test"), PageCount(count))
    return try show(object, protection)
  }

  /// Another range that shows `count` pages of an object, by default all.
  package func show(
    _ object: MemoryObject, _ protection: Protection = .kernelData, from offset: UInt64 = 0,
    _ count: UInt64? = nil
  ) throws -> Area {
    let count = count ?? object.pageCount.rawValue - offset
    let address = try paging.map(
      object, from: PageCount(offset), count: PageCount(count), protection: protection)
    return Area(object: object, address: address, count: count, offset: offset)
  }

  package func hide(_ area: Area) { paging.unmap(area.address, PageCount(area.count)) }

  package func release(_ area: Area) {
    hide(area)
    paging.destroy(area.object)
  }

  package func place(_ area: Area, _ page: UInt64) -> PageDescription {
    paging.describe(area.object, page: area.offset + page)
  }
  package func frame(_ area: Area, _ page: UInt64) -> FrameNumber { place(area, page).frame ?? .none }
  package func mapping(_ area: Area, _ page: UInt64) -> PageMapping? {
    memory.pageTables.mapping(at: area[page])
  }

  // MARK: Stamps

  /// The bytes of a page that a stamp is in: at its ends and in between.
  private static let places: [UInt64] = [0, 1368, 2728, 4088]
  private static func word(_ stamp: UInt64, _ place: UInt64) -> UInt64 {
    stamp == 0 ? 0 : stamp &* 0x9e37_79b9_7f4a_7c15 ^ place
  }

  package func write(_ area: Area, _ page: UInt64, _ stamp: UInt64) throws(PagingError) {
    for place in Self.places {
      try processor.store(area[page] + ByteCount(place), Self.word(stamp, place))
    }
  }

  /// Whether the page holds `stamp`; 0 for a page of zeroes.
  package func holds(_ area: Area, _ page: UInt64, _ stamp: UInt64) throws(PagingError) -> Bool {
    for place in Self.places
    where try processor.load(area[page] + ByteCount(place)) != Self.word(stamp, place) {
      return false
    }
    return true
  }

  /// The same by the frame's own address, as a device sees it.
  package func write(frame: FrameNumber, _ stamp: UInt64) {
    for place in Self.places { words(frame)[Int(place / 8)] = Self.word(stamp, place) }
  }
  package func holds(frame: FrameNumber, _ stamp: UInt64) -> Bool {
    Self.places.allSatisfy { words(frame)[Int($0 / 8)] == Self.word(stamp, $0) }
  }

  /// Wires the frames of small free blocks, so that the next fifteen single frames follow each other.
  package func lineUpFrames() throws {
    func next() throws -> FrameNumber {
      try physical.allocate(BlockOrder(0), role: .wired, priority: .normal)
    }
    while true {
      let frame = try next()
      guard frame.rawValue % 16 == 0 else { continue }
      let follower = try next()
      if follower == frame + .one { return physical.free(follower, BlockOrder(0)) }
    }
  }

  /// Writes a stamp to each page: the first of them and its number.
  package func fill(_ area: Area, from first: UInt64 = 1000) throws {
    for page in 0..<area.count { try write(area, page, first + area.offset + page) }
  }

  package func verify(
    _ area: Area, from first: UInt64 = 1000, _ note: String = "", _ file: StaticString = #filePath,
    _ line: UInt = #line
  ) throws {
    for page in 0..<area.count {
      XCTAssertTrue(
        try holds(area, page, first + area.offset + page), "page \(page) \(note)", file: file, line: line)
    }
  }

  // MARK: Memory

  /// Reclaims every page that can be.
  @discardableResult package func launderAll() -> LaunderOutcome {
    var outcome = LaunderOutcome()
    for queue in [PageQueue.laundry, .inactive, .active] {
      let one = paging.launder(queue, upTo: PageCount(UInt64(1) << 30), referenced: .launder)
      outcome = outcome + one
    }
    return outcome
  }

  /// Allocates all free frames and frees them again: no cached page is left.
  package func dropCached() { giveBack(takeAll()) }

  /// Frames that the page daemon keeps free, a half of memory at most.
  package func setTarget(_ pages: UInt64) {
    let rows = memory.statistics
    for i in 0..<rows.count where "\(rows[i].name)" == "vm.free_target" {
      XCTAssertEqual(rows[i].set(pages), .accepted)
    }
  }

  // MARK: Pictures

  /// The state that a refused operation must not change, and an undone one must restore.
  package struct Picture: Equatable {
    package var roles: [FrameRole: UInt64] = [:]
    package var queues: [UInt64] = []
    package var counts: [UInt64] = []
    package var pages: [[UInt64]] = []
    package var ranges: [[UInt64]] = []
    package var kmem: UInt64 = 0
  }

  /// Frames by role, figures of paging and, if asked for, where each page is. Tags come and go by the page.
  package func picture(pages: Bool = false) -> Picture {
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
  package func expectFault(
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
  package func preempting(at n: Int, _ other: @escaping () -> Void, _ act: () throws -> Void) rethrows -> Bool
  {
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
