// Writes to freed objects and beyond the ends of objects: each is reported by the object that it hit, or changes
// nothing. After any write, kmem allocates objects of slabs only, each to one caller.

import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import Kmem
@testable import Magazines
@testable import PhysicalMemory

final class StrayWriteTests: XCTestCase {
  /// A cache to write stray bytes into.
  private struct Shape {
    var size: UInt64
    var alignment: UInt64 = 1
    var isConstructed = false
  }

  private static let shapes = [
    Shape(size: 8), Shape(size: 16), Shape(size: 24), Shape(size: 40), Shape(size: 48),
    Shape(size: 64, alignment: 64),
    Shape(size: 72, isConstructed: true), Shape(size: 100), Shape(size: 192, alignment: 64),
    Shape(size: 256, alignment: 64), Shape(size: 1152, alignment: 64), Shape(size: 4096, alignment: 4096),
    Shape(size: 5000),
  ]

  private func make(_ rig: KmemFixture, _ shape: Shape, _ auditing: Auditing) throws -> ObjectCache {
    let hook: ObjectHook? = shape.isConstructed ? { _, _ in } : nil
    let cache = try rig.kmem.createCache(
      name: ShortName("stray"), size: ByteCount(shape.size), alignment: Alignment(shape.alignment)!,
      construct: hook)
    cache.setAudit(auditing)
    return cache
  }

  /// One stray write, and what it has to lead to.
  private struct Write {
    var start: UnsafeMutableRawPointer
    var before: [UInt8]
    /// Free objects whose word it changed, and the last object of a slab whose guard it changed.
    var freed: Set<UInt64> = []
    var overrun: UInt64?

    func undo() {
      for i in 0..<before.count { start.storeBytes(of: before[i], toByteOffset: i, as: UInt8.self) }
    }
  }

  /// Writes 1, 2, 4 or 8 bytes at any place of the slab that `object` lies in.
  private func strayWrite(
    _ rig: KmemFixture, _ cache: ObjectCache, near object: UnsafeMutableRawPointer,
    _ random: inout SeededRandom
  ) -> Write {
    let place = rig.kmem.locate(VirtualAddress(object))!
    let (slab, pointer) = (place.slab, place.cache)
    let bytes = slab.frames * Int(Page.size)
    let width = 1 << Int(random.below(4))
    var offset = Int(random.below(UInt64(bytes - width + 1)))
    let wordOffset = pointer.descriptor.wordOffset
    let end = slab.objects * pointer.chunk
    switch random.below(4) {
    // The first bytes of what kmem looks at: of a word, and behind the last object.
    case 0...1:
      offset = min(Int(random.below(UInt64(slab.objects))) * pointer.chunk + wordOffset, bytes - width)
    case 2: offset = min(end + Int(random.below(16)), bytes - width)
    default: break
    }
    let start = slab.base + offset
    var value = random.next()
    switch random.below(4) {
    case 0: value = [0, .max, 0xfffe, 1][Int(random.below(4))]
    // The word of another object, or of this one moved on a little.
    case 1: value = FreeWord.of(slab.base + Int(random.below(UInt64(slab.objects))) * pointer.chunk)
    case 2: value = start.loadUnaligned(as: UInt64.self) &+ random.below(3)
    default: break
    }
    func words() -> [UInt64] {
      (0..<slab.objects).map { pointer.object(slab, $0).load(fromByteOffset: wordOffset, as: UInt64.self) }
    }
    let wordsBefore = words()
    let wasIntact = slab.isAudited && pointer.isGuardIntact(slab)
    var write = Write(
      start: start, before: (0..<width).map { start.load(fromByteOffset: $0, as: UInt8.self) })
    for i in 0..<width {
      start.storeBytes(of: UInt8(truncatingIfNeeded: value >> UInt64(8 * i)), toByteOffset: i, as: UInt8.self)
    }
    let wordsAfter = words()
    for index in 0..<slab.objects where slab.isFree(index) && wordsBefore[index] != wordsAfter[index] {
      write.freed.insert(VirtualAddress(pointer.object(slab, index)).rawValue)
    }
    if wasIntact && !pointer.isGuardIntact(slab) {
      write.overrun = VirtualAddress(pointer.object(slab, slab.objects - 1)).rawValue
    }
    return write
  }

  /// Fills slabs, frees some objects, writes, takes all there is and gives it back.
  private func trial(
    _ rig: KmemFixture, _ shape: Shape, _ auditing: Auditing, _ random: inout SeededRandom, note: String
  )
    throws -> (reported: Int, harmless: Int)
  {
    let type = rig.type()
    let cache = try make(rig, shape, auditing)
    var live: [UnsafeMutableRawPointer] = [try XCTUnwrap(cache.alloc(type: type))]
    let perSlab = try XCTUnwrap(rig.kmem.whatIs(VirtualAddress(live[0]))).objects
    for _ in 1..<(perSlab + 1 + Int(random.below(UInt64(perSlab + 2)))) {
      live.append(try XCTUnwrap(cache.alloc(type: type)))
    }
    let share = random.below(101)
    var free = 0
    for i in stride(from: live.count - 1, to: 0, by: -1) where random.below(100) < share {
      live.swapAt(i, live.count - 1)
      cache.free(live.removeLast(), type: type)
      free += 1
    }
    cache.drain()
    rig.check(note)
    let lastLive = { (write: Write) in live.first { VirtualAddress($0).rawValue == write.overrun } }
    let write = strayWrite(rig, cache, near: live[Int(random.below(UInt64(live.count)))], &random)
    let isLost = !write.freed.isEmpty || (write.overrun != nil && lastLive(write) == nil)
    XCTAssertEqual(rig.kmem.checkInvariants() == nil, write.freed.isEmpty && write.overrun == nil, note)
    // All that is free, and more: nothing that was written to is overlooked.
    let faults = rig.host.faults {
      for _ in 0..<(free + perSlab) {
        guard let object = cache.alloc(type: type) else { return XCTFail("no memory. \(note)") }
        live.append(object)
      }
    }
    XCTAssertEqual(faults.count, isLost ? 1 : 0, note)
    for fault in faults {
      switch fault.kind {
      case .writeAfterFree: XCTAssertTrue(write.freed.contains(fault.subject), note)
      case .overrun: XCTAssertEqual(fault.subject, write.overrun, note)
      default: XCTFail("\(fault.kind). \(note)")
      }
      XCTAssertEqual(fault.owner, ShortName("stray"))
    }
    XCTAssertEqual(Set(live).count, live.count, "an object was given out twice. \(note)")
    for object in live {
      let place = rig.kmem.locate(VirtualAddress(object))
      XCTAssertNotNil(place, note)
      XCTAssertNil(place?.mistake(cache.cacheIndex)?.kind, note)
    }
    let isBroken = write.overrun != nil && lastLive(write) != nil && !isLost
    if !isBroken { rig.check(note) }
    for object in live {
      let isBlamed = isBroken && VirtualAddress(object).rawValue == write.overrun
      let faults = rig.host.faults { cache.free(object, type: type) }
      XCTAssertEqual(faults.map(\.kind), isBlamed ? [.overrun] : [], note)
      guard isBlamed else { continue }
      XCTAssertEqual(faults.first?.subject, write.overrun, note)
      write.undo()
      rig.check(note)
      cache.free(object, type: type)
    }
    rig.check(note)
    rig.kmem.destroy(cache)
    return (faults.count + (isBroken ? 1 : 0), isLost || isBroken ? 0 : 1)
  }

  func testEachStrayWriteIsReportedOrHarmless() throws {
    let seed = historySeed(9)
    let rig = try KmemFixture(frames: 1024)
    var sum = (reported: 0, harmless: 0)
    for (number, shape) in Self.shapes.enumerated() {
      for auditing in [Auditing.off, .on] {
        var random = SeededRandom(seed: seed &+ UInt64(number * 2 + (auditing == .on ? 1 : 0)))
        for turn in 0..<(shape.size < 48 ? 40 : 150) {
          let note = "STRATA_SEED=\(seed), \(shape.size) bytes, audit \(auditing), turn \(turn)"
          let found = try trial(rig, shape, auditing, &random, note: note)
          sum.reported += found.reported
          sum.harmless += found.harmless
        }
        rig.expectEmpty()
      }
    }
    print("stray writes: \(sum.reported) reported, \(sum.harmless) harmless")
    XCTAssertGreaterThan(sum.reported, 300)
    XCTAssertGreaterThan(sum.harmless, 300)
  }

  /// Whether a free object that the slab may give out has lost its word.
  private func hasLostItsWord(_ rig: KmemFixture, _ object: UInt64) -> Bool {
    guard let place = rig.kmem.locate(VirtualAddress(object)), place.offset == 0, !place.slab.isDamaged else {
      return false
    }
    return place.slab.isFree(place.index)
      && !place.cache.looksFree(place.cache.object(place.slab, place.index))
  }

  /// The slab whose last object this is, if its guard has been written to.
  private func brokenSlab(_ rig: KmemFixture, _ last: UInt64) -> Slab? {
    guard let place = rig.kmem.locate(VirtualAddress(last)), place.slab.isAudited,
      place.index == place.slab.objects - 1, place.offset == 0, !place.cache.isGuardIntact(place.slab)
    else { return nil }
    return place.slab
  }

  private func mendGuard(_ rig: KmemFixture, _ last: UInt64) {
    guard let place = rig.kmem.locate(VirtualAddress(last)), let slab = brokenSlab(rig, last) else { return }
    let end = place.cache.object(slab, slab.objects)
    for word in stride(from: 0, to: CachePointer.guardBytes, by: 8) {
      (end + word).storeBytes(of: FreeWord.of(end + word), as: UInt64.self)
    }
  }

  // MARK: Histories

  /// A system with stray writes between its operations, and a model of it.
  private struct History {
    let rig: KmemFixture
    let caches: [ObjectCache]
    var random: SeededRandom
    var live: [(pointer: UnsafeMutableRawPointer, cache: Int)] = []
    var allocated: Set<UnsafeMutableRawPointer> = []
    /// The damage of stray writes that kmem has not reported yet: free objects, and slabs by their last object.
    var freed: Set<UInt64> = []
    var overrun: Set<UInt64> = []
    var reported = 0
    /// Whether the last step was a free that kmem had to refuse.
    var isRefused = false
  }

  private func allocate(_ number: Int, in history: inout History, _ note: String) {
    let (rig, cache) = (history.rig, history.caches[number])
    guard let object = cache.alloc(type: rig.type()) else { return XCTFail("no memory. \(note)") }
    XCTAssertTrue(history.allocated.insert(object).inserted, "allocated twice. \(note)")
    XCTAssertFalse(history.freed.contains(VirtualAddress(object).rawValue), "not reported. \(note)")
    let location = rig.kmem.locate(VirtualAddress(object))
    XCTAssertTrue(location != nil && location?.mistake(cache.cacheIndex) == nil, note)
    history.live.append((object, number))
  }

  private func freeSome(in history: inout History) {
    guard !history.live.isEmpty else { return }
    let rig = history.rig
    let index = Int(history.random.below(UInt64(history.live.count)))
    let object = history.live[index]
    let address = VirtualAddress(object.pointer)
    history.caches[object.cache].free(object.pointer, type: rig.type())
    let audited = rig.kmem.locate(address).map(\.slab.isAudited) ?? false
    history.isRefused = audited && history.overrun.contains(address.rawValue)
    guard !history.isRefused || rig.kmem.whatIs(address)!.standing != .inUse else { return }
    history.live.swapAt(index, history.live.count - 1)
    history.live.removeLast()
    history.allocated.remove(object.pointer)
  }

  private func step(_ history: inout History, _ note: String) {
    let number = Int(history.random.below(UInt64(history.caches.count)))
    let cache = history.caches[number]
    switch history.random.below(100) {
    case 0: cache.drain()
    case 1: history.rig.kmem.trim()
    case 2: cache.setAudit(history.random.oneIn(2) ? .on : .off)
    case 3..<8:
      let own = history.live.filter { $0.cache == number }
      guard let object = own.randomElement(using: &history.random) else { break }
      let write = strayWrite(history.rig, cache, near: object.pointer, &history.random)
      history.freed.formUnion(write.freed)
      if let object = write.overrun { history.overrun.insert(object) }
    case 8..<60: allocate(number, in: &history, note)
    default: freeSome(in: &history)
    }
  }

  /// Compares the reports of a step with the model, and the check of the invariants with the damage that is left.
  private func compare(_ faults: [FaultReport], _ history: inout History, _ note: String) {
    let rig = history.rig
    history.reported += faults.count
    for fault in faults {
      switch fault.kind {
      case .writeAfterFree: XCTAssertTrue(history.freed.contains(fault.subject), note)
      case .overrun: XCTAssertTrue(history.overrun.contains(fault.subject), note)
      default: XCTFail("\(fault.kind) \(fault.what). \(note)")
      }
      if history.isRefused { mendGuard(rig, fault.subject) }
    }
    // A report retires the slab with all the damage in it; a released slab has none any more.
    history.freed = history.freed.filter { hasLostItsWord(rig, $0) }
    history.overrun = history.overrun.filter { brokenSlab(rig, $0) != nil }
    let isGuardBroken = history.overrun.contains { brokenSlab(rig, $0)?.isDamaged == false }
    let broken = rig.kmem.checkInvariants().map { "\($0)" }
    switch broken {
    case nil: XCTAssertTrue(history.freed.isEmpty && !isGuardBroken, note)
    case "KM-9: a free object has lost its word": XCTAssertFalse(history.freed.isEmpty, note)
    case "KM-9: the guard behind the last object of a slab was written to":
      XCTAssertTrue(isGuardBroken, note)
    default: XCTFail("\(broken ?? "") \(note)")
    }
  }

  /// Allocations, frees, drains and trims go on between stray writes. An invariant is broken exactly as long as a stray
  /// write is not reported.
  func testHistoriesGoOnAfterStrayWrites() throws {
    let seed = historySeed(21)
    for round in 0..<6 {
      let rig = try KmemFixture(frames: 2048, processors: 2)
      let caches = try [2, 4, 5, 6, 7, 8, 10].map { try make(rig, Self.shapes[$0], .off) }
      var history = History(rig: rig, caches: caches, random: SeededRandom(seed: seed &+ UInt64(round)))
      for turn in 0..<4000 {
        let note = "STRATA_SEED=\(seed), round \(round), turn \(turn)"
        history.isRefused = false
        let processor = Int(history.random.below(2))
        let faults = rig.host.faults { rig.host.runAs(processor: processor) { step(&history, note) } }
        compare(faults, &history, note)
      }
      XCTAssertGreaterThan(history.reported, 3, "round \(round)")
      let note = "STRATA_SEED=\(seed), round \(round), at the end"
      for object in history.overrun { mendGuard(rig, object) }
      let faults = rig.host.faults {
        for object in history.live { caches[object.cache].free(object.pointer, type: rig.type()) }
        for cache in caches { cache.drain() }
      }
      for fault in faults {
        XCTAssertTrue(history.freed.contains(fault.subject), "\(fault.kind) \(fault.what). \(note)")
      }
      rig.check(note)
      for cache in caches { rig.kmem.destroy(cache) }
      rig.expectEmpty()
    }
  }

  // MARK: kmem's own memory

  /// The first of the full magazines in the depot of `cache`.
  private func magazine(_ rig: KmemFixture, _ cache: ObjectCache) -> UnsafeMutablePointer<UInt>? {
    rig.kmem.cache(at: cache.cacheIndex)?.magazines.state.pointee.lists.withLock { $0.full.first }
  }

  /// A caller writes through a pointer whose frame holds magazines now.
  func testAWordOfAMagazineThatWasWrittenToIsReportedAndNotGivenOut() throws {
    for wrong in 0..<9 {
      for index in [0, 30, 62] {
        let note = "wrong word \(wrong) at \(index)"
        let rig = try KmemFixture()
        let type = rig.type()
        let (cache, other) = (
          try make(rig, Shape(size: 64, alignment: 64), .off), try make(rig, Shape(size: 64), .off)
        )
        let foreign = try XCTUnwrap(other.alloc(type: type))
        let kept = (0..<40).map { _ in cache.alloc(type: type)! }
        let objects = (0..<300).map { _ in cache.alloc(type: type)! }
        for object in objects { cache.free(object, type: type) }
        let slab = rig.kmem.locate(VirtualAddress(objects[150]))!.slab
        let first = try XCTUnwrap(magazine(rig, cache), note)
        let spare = cache.alloc(type: type)!
        let free = rig.kmem.cache(at: cache.cacheIndex)!
        var freeWord: UInt = 0
        free.forEachSlab { slab in
          for i in 0..<slab.objects where slab.isFree(i) { freeWord = UInt(bitPattern: free.object(slab, i)) }
        }
        let words: [UInt] = [
          0, 1, .max, UInt(bitPattern: objects[150]) + 8, UInt(bitPattern: foreign), freeWord,
          UInt(bitPattern: first), UInt(bitPattern: slab.base) + 1 << 40, 0x4141_4141_4141_4141,
        ]
        let hit = UnsafeMutableRawPointer(bitPattern: first[index])!
        first[index] = words[wrong]
        XCTAssertTrue(rig.kmem.checkInvariants().map { "\($0)" }?.hasPrefix("KM-3: ") == true, note)
        var got: [UnsafeMutableRawPointer] = [spare]
        let faults = rig.host.faults { for _ in 0..<400 { got.append(cache.alloc(type: type)!) } }
        XCTAssertEqual(faults.map(\.subject), [UInt64(words[wrong])], note)
        XCTAssertEqual(Set(got + kept).count, got.count + kept.count, "given out twice. \(note)")
        XCTAssertFalse(got.contains(hit), note)
        for object in got {
          let place = rig.kmem.locate(VirtualAddress(object))
          XCTAssertTrue(place != nil && place?.mistake(cache.cacheIndex) == nil, note)
        }
        rig.check(note)
        for object in got + kept { cache.free(object, type: type) }
        cache.drain()
        rig.check(note)
        // The object whose word is lost counts as in use.
        XCTAssertEqual(
          rig.host.faults { rig.kmem.destroy(cache) }.map(\.subject), [VirtualAddress(hit).rawValue])
      }
    }
  }

  /// The number of rounds in a partly filled magazine becomes the address of an object that is in use.
  func testANumberOfRoundsThatWasWrittenToFreesNoObject() throws {
    let rig = try KmemFixture()
    let type = rig.type()
    let cache = try make(rig, Shape(size: 64, alignment: 64), .off)
    let live = try XCTUnwrap(cache.alloc(type: type))
    for object in (0..<20).map({ _ in cache.alloc(type: type)! }) { cache.free(object, type: type) }
    let magazines = try XCTUnwrap(rig.kmem.cache(at: cache.cacheIndex)).magazines
    magazines.unload()
    let partial = try XCTUnwrap(magazines.state.pointee.lists.withLock { $0.partial.first })
    partial[62] = UInt(bitPattern: live)
    let faults = rig.host.faults { cache.drain() }
    XCTAssertEqual(faults.map(\.kind), [.foreignPointer])
    XCTAssertEqual(faults.map(\.subject), [VirtualAddress(UnsafeRawPointer(partial + 62)).rawValue])
    XCTAssertEqual(rig.kmem.whatIs(VirtualAddress(live))?.standing, .inUse)
    let got = (0..<200).map { _ in cache.alloc(type: type)! }
    XCTAssertEqual(Set(got + [live]).count, 201, "given out twice")
  }

  /// The objects that are out of a cache's slabs: by the slabs' lists, not by way of an address.
  private func objectsOut(_ cache: CachePointer) -> Set<UInt> {
    var out: Set<UInt> = []
    cache.forEachSlab { slab in
      for index in 0..<slab.objects where !slab.isFree(index) {
        out.insert(UInt(bitPattern: slab.base) + UInt(index * cache.chunk))
      }
    }
    return out
  }

  /// Compares an `ObjectFinder` with the slabs of its cache, for words of every kind. `frames` are of another owner.
  private func checkFinder(
    _ rig: KmemFixture, _ pointer: CachePointer, frames: [FrameNumber], _ random: inout SeededRandom,
    note: String
  ) {
    let out = objectsOut(pointer)
    XCTAssertGreaterThan(out.count, 5, note)
    var finder = ObjectFinder(pointer)
    var found = 0
    func check(_ word: UInt) {
      let object = finder.objectOut(word)
      if (object != nil) != out.contains(word) { XCTFail("\(String(word, radix: 16)). \(note)") }
      guard let object else { return }
      found += 1
      let slab = Slab(object.frame, object.record, rig.host.machine.directMap)
      XCTAssertEqual(UInt(bitPattern: pointer.object(slab, object.index)), word, note)
    }
    let memory = UInt(bitPattern: rig.host.machine.directMap.pointer(to: FrameNumber(0)))
    for number in 0..<UInt(1024) {
      let isSlab = rig.physical.record(FrameNumber(UInt32(number)))?.role == .slab
      for offset in stride(from: UInt(0), to: 4096, by: isSlab ? 8 : 1024) {
        check(memory + number << 12 + offset)
      }
    }
    XCTAssertEqual(found, out.count, note)
    // Another owner's frame, whose record has the same values by chance.
    if let frame = frames.last, let record = rig.physical.record(frame) {
      (record.owner, record.aux) = (pointer.descriptor.plainOwner, 1)
      check(memory + UInt(frame.rawValue) << 12)
      record.queue = .owner
      check(memory + UInt(frame.rawValue) << 12)
      (record.owner, record.aux, record.queue) = (0, 0, .none)
    }
    for _ in 0..<1000 {
      check(memory + UInt(random.below(1024 << 12)))
      check(UInt(random.next()))
      check(memory &+ UInt(random.next() >> random.below(60)))
      if let word = out.randomElement(using: &random) {
        check(word)
        check(word ^ 1 << UInt(random.below(64)))
      }
    }
    for word in [
      0, 1, .max, memory - 1, memory + 1024 << 12, memory + 1 << 44 - 1 << 12, memory + 1 << 44,
    ] {
      check(word)
    }
  }

  /// The forms of slabs that a cache has.
  private func forms(_ pointer: CachePointer) -> Set<String> {
    var forms: Set<String> = []
    pointer.forEachSlab { slab in
      if slab.isAudited { forms.insert("audited") }
      if slab.tables != nil { forms.insert("with tables") }
      if slab.frames > 1 { forms.insert("of several frames") }
      if !slab.isAudited && slab.record.owner != pointer.descriptor.plainOwner { forms.insert("small") }
    }
    return forms
  }

  /// Slabs of all forms: plain, with tables, of several frames, of fewer frames than preferred, audited, released; and
  /// beside each those of another cache of the same form.
  func testAWordIsAnAllocatedObjectExactlyWhenItsSlabSaysSo() throws {
    let seed = historySeed(33)
    var forms: Set<String> = []
    for shape in Self.shapes {
      var random = SeededRandom(seed: seed)
      let note = "STRATA_SEED=\(seed), \(shape.size) bytes"
      // Two pageblocks, and a machine that ends with them.
      let rig = try KmemFixture(frames: 1024)
      let type = rig.type()
      let caches = try [make(rig, shape, .off), make(rig, shape, .off)]
      var live: [(object: UnsafeMutableRawPointer, cache: ObjectCache)] = []
      func allocate(_ bytes: UInt64) {
        for cache in caches {
          for _ in 0..<min(300, bytes / shape.size) {
            guard let object = cache.alloc(type: type) else { return XCTFail("no memory. \(note)") }
            live.append((object, cache))
          }
        }
      }
      func free(_ percent: UInt64) {
        for i in stride(from: live.count - 1, through: 0, by: -1) where random.below(100) < percent {
          live.swapAt(i, live.count - 1)
          let last = live.removeLast()
          last.cache.free(last.object, type: type)
        }
      }
      allocate(200 << 10)
      for cache in caches { cache.setAudit(.on) }
      allocate(60 << 10)
      for cache in caches { cache.setAudit(.off) }
      // Of the largest shape a cache has 52 objects: enough of them stay for any seed.
      free(shape.size <= 4096 ? 70 : 50)
      for cache in caches { cache.drain() }
      // No two free frames lie side by side, so a new slab has one frame.
      var frames: [FrameNumber] = []
      while let frame = try? rig.physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
        frames.append(frame)
      }
      if shape.size <= 4096 {
        frames.sort()
        for frame in frames where frame.rawValue % 2 == 0 { rig.physical.free(frame, BlockOrder(0)) }
        frames.removeAll { $0.rawValue % 2 == 0 }
        allocate(400 << 10)
        free(40)
      }
      for cache in caches {
        let pointer = try XCTUnwrap(rig.kmem.cache(at: cache.cacheIndex))
        forms.formUnion(self.forms(pointer))
        checkFinder(rig, pointer, frames: frames, &random, note: note)
      }
      for frame in frames { rig.physical.free(frame, BlockOrder(0)) }
      rig.check(note)
    }
    XCTAssertEqual(forms.count, 4, "\(forms)")
  }

  func testAMapThatWasWrittenToIsReportedAndItsSlabGivesOutNoMore() throws {
    for auditing in [Auditing.off, .on] {
      for wrong in 0..<4 {
        let note = "audit \(auditing), wrong map \(wrong)"
        let rig = try KmemFixture()
        let (cache, objects) = try slab(rig, size: 40, free: [3, 70, 90], auditing)
        let slab = rig.kmem.locate(VirtualAddress(objects[0]))!.slab
        let map = try XCTUnwrap(slab.tables).assumingMemoryBound(to: UInt64.self)
        switch wrong {
        case 0: map[0] |= 1 << 5
        case 1: map[1] |= 1 << 63
        case 2: map[1] = 0
        default: (map[0], map[1]) = (.max, .max)
        }
        XCTAssertTrue(rig.kmem.checkInvariants().map { "\($0)" }?.hasPrefix("KM-9: ") == true, note)
        var got: [UnsafeMutableRawPointer] = []
        let faults = rig.host.faults { for _ in 0..<200 { got.append(cache.alloc(type: rig.type())!) } }
        XCTAssertEqual(faults.map(\.kind), [.writeAfterFree], note)
        XCTAssertEqual(faults.map(\.subject), [VirtualAddress(UnsafeRawPointer(map)).rawValue], note)
        XCTAssertTrue(Set(got).isDisjoint(with: objects), note)
        rig.check(note)
      }
    }
  }

  // MARK: One write each

  /// A cache of one slab with all objects out but `free`, which lie in the slab.
  private func slab(
    _ rig: KmemFixture, size: Int, free: [Int], _ auditing: Auditing
  ) throws -> (cache: ObjectCache, objects: [UnsafeMutableRawPointer]) {
    let cache = try make(rig, Shape(size: UInt64(size)), auditing)
    let type = rig.type()
    let first = try XCTUnwrap(cache.alloc(type: type))
    let count = rig.kmem.whatIs(VirtualAddress(first))!.objects
    let objects = ([first] + (1..<count).map { _ in cache.alloc(type: type)! }).sorted()
    for index in free { cache.free(objects[index], type: type) }
    cache.drain()
    return (cache, objects)
  }

  func testTwoBytesAtTheStartOfAFreeObjectAreReportedByThatObject() throws {
    for auditing in [Auditing.off, .on] {
      // Any value: the number of another object, of none, or the former end of a link.
      for value: UInt16 in [0, 3, 5, 7, 63, 0xfffe, 0xffff] {
        let rig = try KmemFixture()
        let (cache, objects) = try slab(rig, size: 48, free: [3, 5, 7], auditing)
        let isSame = objects[5].load(as: UInt16.self) == value
        objects[5].storeBytes(of: value, as: UInt16.self)
        var got: [UnsafeMutableRawPointer] = []
        let faults = rig.host.faults { for _ in 0..<4 { got.append(cache.alloc(type: rig.type())!) } }
        XCTAssertEqual(faults.map(\.kind), isSame ? [] : [.writeAfterFree])
        XCTAssertEqual(faults.map(\.subject), isSame ? [] : [VirtualAddress(objects[5]).rawValue])
        XCTAssertEqual(Set(got).count, 4)
        XCTAssertEqual(got[0], objects[3])
        XCTAssertFalse(got.contains(objects[5]))
        if auditing == .on && !isSame {
          XCTAssertNotEqual(faults[0].allocatedAt, .unknown)
          XCTAssertNotEqual(faults[0].freedAt, .unknown)
          XCTAssertEqual(faults[0].type, ShortName("test"))
        }
        rig.check()
      }
    }
  }

  func testAWriteBehindTheLastObjectIsReportedByThatObject() throws {
    let rig = try KmemFixture()
    let (cache, objects) = try slab(rig, size: 48, free: [], .on)
    let (last, type) = (objects.last!, rig.type())
    let guardWord = (last + 48).load(as: UInt16.self)
    (last + 48).storeBytes(of: ~guardWord, as: UInt16.self)
    // The owners of the others are not blamed.
    for object in objects.dropLast() { cache.free(object, type: type) }
    for _ in 0..<2 {
      let faults = rig.host.faults { cache.free(last, type: type) }
      XCTAssertEqual(faults.map(\.kind), [.overrun])
      XCTAssertEqual(faults.first?.subject, VirtualAddress(last).rawValue)
      XCTAssertEqual(faults.first?.owner, ShortName("stray"))
      XCTAssertEqual(faults.first?.type, ShortName("test"))
      XCTAssertNotEqual(faults.first?.allocatedAt, .unknown)
      XCTAssertNotEqual(faults.first?.reportedAt, .unknown)
      XCTAssertEqual(rig.kmem.whatIs(VirtualAddress(last))!.standing, .inUse, "a report changes nothing")
    }
    (last + 48).storeBytes(of: guardWord, as: UInt16.self)
    cache.free(last, type: type)
    rig.check()
    rig.kmem.destroy(cache)
    rig.expectEmpty()
  }

  func testAWriteBehindAFreeLastObjectIsReportedBeforeThatIsGivenOut() throws {
    let rig = try KmemFixture()
    let (cache, objects) = try slab(rig, size: 48, free: [84], .on)
    XCTAssertEqual(objects.count, 85, "16 bytes are left of the page")
    (objects[84] + 63).storeBytes(of: ~(objects[84] + 63).load(as: UInt8.self), as: UInt8.self)
    var got: UnsafeMutableRawPointer?
    let faults = rig.host.faults { got = cache.alloc(type: rig.type()) }
    XCTAssertEqual(faults.map(\.kind), [.overrun])
    XCTAssertEqual(faults.first?.subject, VirtualAddress(objects[84]).rawValue)
    XCTAssertNotNil(got)
    XCTAssertFalse(objects.contains(got!))
    rig.check()
  }

  func testAnAuditedSlabIsCheckedBeforeItsFramesAreFreed() throws {
    let rig = try KmemFixture()
    let (cache, objects) = try slab(rig, size: 48, free: Array(1..<85), .on)
    objects[9].storeBytes(of: 0, as: UInt8.self)
    objects[30].storeBytes(of: 0, toByteOffset: 7, as: UInt8.self)
    (objects[84] + 48).storeBytes(of: 0, as: UInt64.self)
    let changed = [9, 30].filter { objects[$0].load(as: UInt64.self) != FreeWord.of(objects[$0]) }
    let faults = rig.host.faults {
      cache.free(objects[0], type: rig.type())
      cache.drain()
    }
    XCTAssertEqual(faults.map(\.kind), changed.map { _ in .writeAfterFree } + [.overrun])
    XCTAssertEqual(faults.map(\.subject), (changed + [84]).map { VirtualAddress(objects[$0]).rawValue })
    rig.kmem.destroy(cache)
    rig.expectEmpty()
  }

  /// A write over the end of a frame that objects fill reaches no table of kmem's, wherever that lies.
  func testTheFirstBytesOfKmemsOwnFramesAreUnused() throws {
    let seed = historySeed(5)
    var random = SeededRandom(seed: seed)
    let rig = try KmemFixture(frames: 2048)
    let type = rig.type()
    var live: [(pointer: UnsafeMutableRawPointer, size: Int)] = []
    var found = 0
    for turn in 0..<3000 {
      if random.below(100) < (live.count < 800 ? 60 : 40) {
        let size = 1 << Int(random.below(11))
        live.append((rig.kmem.alloc(ByteCount(size), type: type)!, size))
      } else if let object = live.popLast() {
        rig.kmem.free(object.pointer, size: ByteCount(object.size), type: type)
      }
      if turn % 500 == 250 { rig.kmem.setAudit(turn % 1000 == 250 ? .on : .off) }
      guard turn % 100 == 0 else { continue }
      for number in 0..<UInt32(2048) {
        let frame = FrameNumber(number)
        guard let record = rig.physical.record(frame), record.role == .kmem, record.queue == .owner else {
          continue
        }
        found += 1
        rig.host.machine.directMap.pointer(to: frame)
          .initializeMemory(as: UInt8.self, repeating: 0xff, count: 64)
      }
      rig.check("STRATA_SEED=\(seed), turn \(turn)")
    }
    XCTAssertGreaterThan(found, 50)
    for object in live { rig.kmem.free(object.pointer, size: ByteCount(object.size), type: type) }
    rig.kmem.setAudit(.off)
    rig.expectEmpty()
  }
}
