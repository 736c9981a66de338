// Objects of the compressed store that all processors share: they are stored, read, freed, compacted and moved at
// once.
//
// A table of slots holds handles. A worker removes a handle from a slot, so it alone reads or frees that object, and
// puts one back. All other objects of the same zspages belong to other workers at that moment, so compaction and
// contiguous requests move what is being read. Every byte of an object follows from its first word, so a byte of
// another object or page is found.

import CPlatform
import ContiguousMemory
import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import Synchronization
import Zsmalloc

/// The table: a handle.
struct StoredObjects {
  private let slots: UnsafeMutablePointer<Atomic<UInt64>>
  private let store: ZspageAllocator
  private let contiguous: ContiguousAllocator

  private static var slotCount: Int { 128 }
  /// Bytes that it needs, aligned to a cache line.
  static var size: ByteCount { ByteCount(MemoryLayout<Atomic<UInt64>>.stride * slotCount) }

  init(_ memory: MemorySystem, in storage: UnsafeMutableRawPointer) {
    slots = storage.bindMemory(to: Atomic<UInt64>.self, capacity: Self.slotCount)
    for i in 0..<Self.slotCount { (slots + i).initialize(to: Atomic(0)) }
    store = memory.compressed.store
    contiguous = memory.contiguous
  }

  /// One turn.
  func use(_ worker: StressWorker) {
    switch worker.below(64) {
    case 0: store.compact()
    case 1: requestRun(worker)
    case 2..<24: replace(worker)
    default: read(worker)
    }
    worker.countOperation()
  }

  /// Reads an object that no other worker has.
  private func read(_ worker: StressWorker) {
    let slot = slots + Int(worker.below(UInt64(Self.slotCount)))
    let raw = slot.pointee.exchange(0, ordering: .acquiringAndReleasing)
    guard raw != 0 else { return }
    let handle = ZspageHandle(rawValue: raw)
    check(handle, worker)
    worker.record.pointee.tally.reads += 1
    putBack(handle, into: slot)
  }

  /// Frees the object of a slot, and stores another one.
  private func replace(_ worker: StressWorker) {
    let slot = slots + Int(worker.below(UInt64(Self.slotCount)))
    let raw = slot.pointee.exchange(0, ordering: .acquiringAndReleasing)
    if raw != 0 {
      check(ZspageHandle(rawValue: raw), worker)
      store.free(ZspageHandle(rawValue: raw))
    }
    // Some sizes more often, so that zspages have several objects.
    let length = worker.oneIn(2) ? 1500 + Int(worker.below(8)) : 8 + Int(worker.below(4089))
    guard let handle = add(length, worker) else { return worker.countRefusal() }
    worker.record.pointee.tally.exchanged += 1
    putBack(handle, into: slot)
  }

  private func putBack(_ handle: ZspageHandle, into slot: UnsafeMutablePointer<Atomic<UInt64>>) {
    let isDone = slot.pointee.compareExchange(
      expected: 0, desired: handle.rawValue, ordering: .acquiringAndReleasing
    ).exchanged
    if !isDone { store.free(handle) }
  }

  private func add(_ length: Int, _ worker: StressWorker) -> ZspageHandle? {
    var words = InlineArray<512, UInt64>(repeating: 0)
    var word = worker.stamp()
    for i in 0..<(length + 7) / 8 {
      words[i] = word
      word = Self.next(word)
    }
    return withUnsafeBytes(of: &words) { bytes in
      do throws(ZsmallocError) {
        return try store.store(UnsafeRawBufferPointer(rebasing: bytes[..<length]))
      } catch {
        return nil
      }
    }
  }

  /// The word behind a word.
  private static func next(_ word: UInt64) -> UInt64 {
    word &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
  }

  /// Compares all bytes of an object with those that follow from its first word.
  private func check(_ handle: ZspageHandle, _ worker: StressWorker) {
    do throws(ZsmallocError) {
      let mistake = try store.withSelectedParts(of: handle) { Self.firstWrongByte($0) } ?? 0
      worker.require(
        mistake < 0, "an object of the store has other bytes than it was stored with", handle.rawValue,
        found: UInt64(bitPattern: Int64(mistake)), expected: handle.byteCount.rawValue)
    } catch {
      worker.countRefusal()
    }
  }

  /// The position of the first byte that does not follow from the first word; -1 when all do.
  private static func firstWrongByte(_ parts: ObjectParts) -> Int {
    let (first, count) = (parts.first, parts.first.count + parts.second.count)
    func byte(_ at: Int) -> UInt8 { at < first.count ? first[at] : parts.second[at - first.count] }
    var word: UInt64 = 0
    for at in 0..<8 { word |= UInt64(byte(at)) << UInt64(8 * at) }
    var at = 8
    while at < count {
      word = next(word)
      for shift in 0..<min(8, count - at)
      where byte(at + shift) != UInt8(truncatingIfNeeded: word >> UInt64(8 * shift)) {
        return at + shift
      }
      at += 8
    }
    return -1
  }

  /// Requests a run, so that pages of zspages are moved, and frees it.
  private func requestRun(_ worker: StressWorker) {
    var request = ContiguousRequest(PageCount(UInt64(32)), for: FrameOwner("stress"))
    request.passes = .relocate
    do throws(ContiguousFailure) {
      contiguous.releaseContig(try contiguous.allocContig(request))
    } catch {
      worker.countRefusal()
    }
  }

  /// Frees all objects.
  func freeAll(_ worker: StressWorker) {
    for i in 0..<Self.slotCount {
      let raw = (slots + i).pointee.exchange(0, ordering: .acquiringAndReleasing)
      guard raw != 0 else { continue }
      check(ZspageHandle(rawValue: raw), worker)
      store.free(ZspageHandle(rawValue: raw))
    }
  }
}
