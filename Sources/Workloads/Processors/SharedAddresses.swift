// Addresses that are unmapped and mapped anew while all processors read them.
//
// Two kinds. A *window* is an address that this table owns while the stress runs, and that the page tables map and
// unmap. Two of them are neighbours, so that their table stays. Two lie alone in 2 MiB, so that their tables are
// allocated and freed with them. A *range* is a wired page of kernel space, whose address is freed with it: another
// owner may have it at any moment.
//
// Each page is stamped with its place and a generation, which only rises. The worker that maps a page publishes its
// generation when it can be read. The worker that unmaps it clears that first, unmaps, and then announces the
// generation as gone: every processor has invalidated it. The frame of a window is overwritten before it is freed.
//
// INVARIANTS, for a reader that loads the announced and the published generation, reads, and loads both again
//   1  The address of a window is unmapped, or holds a generation later than the one announced before the read.
//   2  If the same generation is published before and after, the read succeeds and finds just that generation.
//
// A translation that a processor did not invalidate breaks (1) at the next read of a window, and (2) as soon as the
// address is used again.

import KernelMemory
import KernelSpace
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Synchronization
import Vmem

/// The addresses: a handle.
struct SharedAddresses {
  private struct Place: ~Copyable {
    /// 1 while a worker maps or unmaps it.
    let turn = Atomic<UInt64>(0)
    let address = Atomic<UInt64>(0)
    /// The last generation that was begun; only the worker with the turn uses it.
    let begun = Atomic<UInt64>(0)
    /// The generation that can be read now, or 0.
    let published = Atomic<UInt64>(0)
    /// No generation up to this one can be read any more, on any processor.
    let announced = Atomic<UInt64>(0)
  }

  private let memory: MemorySystem
  private let access: WordAccess
  private let places: UnsafeMutablePointer<Place>

  private static var neighbours: Int { 2 }
  private static var windows: Int { 4 }
  private static var count: Int { 7 }
  /// Bytes that it needs, aligned to 64.
  static var size: ByteCount { ByteCount(count * MemoryLayout<Place>.stride) }

  init(
    _ memory: MemorySystem, _ access: WordAccess, in storage: UnsafeMutableRawPointer
  ) throws(StressError) {
    self.memory = memory
    self.access = access
    places = storage.bindMemory(to: Place.self, capacity: Self.count)
    for i in 0..<Self.count { (places + i).initialize(to: Place()) }
    do throws(VmemError) {
      let arena = memory.space.kernelArena
      let first = try arena.xalloc(ArenaSize(UInt64(Self.neighbours) << Page.shift), ArenaConstraints())
      for i in 0..<Self.neighbours {
        places[i].address.store(first.rawValue + UInt64(i) << Page.shift, ordering: .relaxed)
      }
      for i in Self.neighbours..<Self.windows {
        let alone = ArenaConstraints(alignment: Alignment(2 << 20).unsafelyUnwrapped)
        let address = try arena.xalloc(ArenaSize(2 << 20), alone)
        places[i].address.store(address.rawValue, ordering: .relaxed)
      }
    } catch {
      end(memory)
      throw .noMemory
    }
  }

  /// Frees the addresses of the windows, as far as they were allocated. No page is mapped there.
  func end(_ memory: MemorySystem) {
    let arena = memory.space.kernelArena
    func address(_ i: Int) -> UInt64 { places[i].address.load(ordering: .relaxed) }
    if address(0) != 0 {
      arena.xfree(ArenaAddress(address(0)), ArenaSize(UInt64(Self.neighbours) << Page.shift))
    }
    for i in Self.neighbours..<Self.windows where address(i) != 0 {
      arena.xfree(ArenaAddress(address(i)), ArenaSize(2 << 20))
    }
  }

  private static func isWindow(_ place: Int) -> Bool { place < windows }

  // MARK: Stamps

  private static func stamp(_ place: Int, _ generation: UInt64) -> UInt64 {
    generation << 16 | UInt64(place) << 8 | 0xa5
  }
  /// The generation in a word, if it is a stamp of this place.
  private static func generation(_ place: Int, _ word: UInt64) -> UInt64? {
    word & 0xffff == stamp(place, 0) ? word >> 16 : nil
  }
  private static var gone: UInt64 { 0x0bad_0bad_0bad_0bad }

  // MARK: Turns

  /// Reads some of the addresses.
  func read(_ worker: StressWorker) {
    for _ in 0..<16 { read(Int(worker.below(UInt64(Self.count))), worker) }
    worker.record.pointee.tally.reads += 16
    worker.countOperation()
  }

  private func read(_ place: Int, _ worker: StressWorker) {
    let announced = places[place].announced.load(ordering: .acquiring)
    let before = places[place].published.load(ordering: .acquiring)
    // The address of a range that was freed may belong to another owner.
    if before == 0 && !Self.isWindow(place) { return }
    let address = places[place].address.load(ordering: .acquiring)
    let offset = worker.below(Page.size / 8) * 8
    let word = try? access.load(VirtualAddress(address + offset))
    let after = places[place].published.load(ordering: .acquiring)
    if Self.isWindow(place), let word {
      let generation = Self.generation(place, word)
      worker.require(
        generation != nil, "a processor sees a frame of another owner", address, found: word,
        expected: Self.stamp(place, before))
      worker.require(
        generation ?? .max > announced, "a processor sees a page that all have invalidated", address,
        found: generation ?? 0, expected: announced + 1)
    }
    if before == after && before != 0 {
      worker.require(word != nil, "a page that is mapped can't be read", address, expected: before)
      let expected = Self.stamp(place, before)
      worker.require(
        word ?? expected == expected, "a processor sees another page than the one mapped", address,
        found: word ?? 0, expected: expected)
    }
  }

  /// Unmaps one of the addresses, if it is mapped, and mostly maps it again.
  func remap(_ worker: StressWorker) {
    let place = Int(worker.below(UInt64(Self.count)))
    guard
      places[place].turn.compareExchange(expected: 0, desired: 1, ordering: .acquiring).exchanged
    else { return }
    remove(place)
    // Sometimes it stays unmapped for a while: then the read must fail.
    if !worker.oneIn(4), !map(place) { worker.countRefusal() }
    places[place].turn.store(0, ordering: .releasing)
    worker.record.pointee.tally.remapped += 1
    worker.countOperation()
  }

  func removeAll(_ worker: StressWorker) {
    for place in 0..<Self.count { remove(place) }
  }

  private func remove(_ place: Int) {
    let generation = places[place].published.exchange(0, ordering: .sequentiallyConsistent)
    guard generation != 0 else { return }
    let address = VirtualAddress(places[place].address.load(ordering: .relaxed))
    guard Self.isWindow(place) else {
      memory.space.freeWired(address, .one)
      places[place].announced.store(generation, ordering: .releasing)
      return
    }
    var frame = FrameNumber.none
    memory.pageTables.unmap(address, count: .one) { start, _ in frame = start.frame }
    places[place].announced.store(generation, ordering: .sequentiallyConsistent)
    guard frame != .none else { return }
    fill(frame, Self.gone)
    memory.physical.free(FrameRun(first: frame, count: .one))
  }

  private func fill(_ frame: FrameNumber, _ word: UInt64) {
    memory.machine.directMap.pointer(to: frame)
      .initializeMemory(as: UInt64.self, repeating: word, count: Int(Page.size / 8))
  }

  /// Maps a page at a place. Returns false when there is no memory.
  private func map(_ place: Int) -> Bool {
    let generation = places[place].begun.load(ordering: .relaxed) + 1
    places[place].begun.store(generation, ordering: .relaxed)
    let stamp = Self.stamp(place, generation)
    guard Self.isWindow(place) ? mapWindow(place, stamp) : mapRange(place, stamp) else { return false }
    places[place].published.store(generation, ordering: .sequentiallyConsistent)
    return true
  }

  private func mapWindow(_ place: Int, _ stamp: UInt64) -> Bool {
    guard let frame = try? memory.physical.allocate(BlockOrder(0), role: .wired, for: FrameOwner("stress"))
    else { return false }
    fill(frame, stamp)
    let address = VirtualAddress(places[place].address.load(ordering: .relaxed))
    do throws(PageTableError) {
      // Tagged as a range of its own, so that it does not count as a page of the range before it.
      try memory.pageTables.map(
        address, to: frame.address, count: .one, protection: .kernelData,
        tag: RangeTag(rawValue: RangeKind.callerFrames.rawValue))
      return true
    } catch {
      memory.physical.free(FrameRun(first: frame, count: .one))
      return false
    }
  }

  /// Allocates a wired page, and stamps it at its address, by the translation of this processor.
  private func mapRange(_ place: Int, _ stamp: UInt64) -> Bool {
    let source: WiredArena = place % 2 == 0 ? .kernel : .heap
    guard
      let address = try? memory.space.allocateWired(
        .one, from: source, for: FrameOwner("stress"))
    else { return false }
    for offset in stride(from: 0, to: Page.size, by: 8) {
      do throws(PagingError) {
        try access.store(address + ByteCount(offset), stamp)
      } catch {
        // The reader detects it.
        break
      }
    }
    places[place].address.store(address.rawValue, ordering: .releasing)
    return true
  }
}
