// Benches of arenas: a segment is freed and another allocated in its place, among many live ones.
//
// The arena is one of its own over the system's supply of tags, without a quantum cache and without a source to
// import from. Sizes are 1 to 16 quanta by chance. The arena is filled, and then a third of its segments are freed by
// chance. So the free space lies scattered; only 64 quanta at the end are free in one run.

import CPlatform
import KernelMemory
import KernelSpace
import MemoryPrimitives
import PhysicalMemory
import Vmem

/// One arena with live segments.
package struct VmemBench {
  /// The constraint of each allocation.
  package enum Kind: UInt8, Sendable {
    /// None.
    case plain
    /// A multiple of 16 quanta.
    case aligned
    /// The half of the arena in which the freed segment lay.
    case windowed
  }

  private struct Segment {
    var first: ArenaAddress
    var size: ArenaSize
  }

  private let memory: MemorySystem
  private let run: FrameRun
  private let arena: Arena
  private let segments: UnsafeMutablePointer<Segment>
  private let live: UInt64
  private let extent: UInt64
  private var random: SeededRandom

  /// An arena with `live` segments; nil when there is no memory for them.
  package init?(_ memory: MemorySystem, live: UInt64, seed: UInt64) {
    let all = live + live / 2
    let bytes = Page.size + all * UInt64(MemoryLayout<Segment>.stride)
    // Beside the segments, a tag for each segment and for each gap between two.
    guard memory.physical.freeCount > ByteCount(bytes + all * 2 * Tags.tagSize.rawValue).pagesRoundedUp else {
      return nil
    }
    self.memory = memory
    self.live = live
    do throws(PhysicalMemoryError) {
      run = try memory.physical.allocate(
        run: ByteCount(bytes).pagesRoundedUp, role: .wired,
        for: FrameOwner("bench, tags of vmem"))
    } catch {
      return nil
    }
    let base = memory.machine.directMap.pointer(to: run.first)
    arena = Arena.create(
      ArenaOptions(name: ShortName("bench"), quantum: .page), in: base, tags: memory.space.tags)
    segments = (base + Int(Page.size)).bindMemory(to: Segment.self, capacity: Int(all))
    random = SeededRandom(seed: seed)
    var extent = 64 * Page.size
    for i in 0..<Int(all) {
      segments[i] = Segment(first: .lowest, size: Self.size(&random))
      extent += segments[i].size.rawValue
    }
    self.extent = extent
    guard fill(all) else {
      arena.destroy()
      memory.physical.free(run)
      return nil
    }
  }

  /// Allocates all segments and frees by chance those above `live`. False when one was refused; none is left then.
  private mutating func fill(_ all: UInt64) -> Bool {
    var count = 0
    do throws(VmemError) {
      try arena.add(ArenaAddress(0), ArenaSize(extent))
      while count < Int(all) {
        segments[count].first = try arena.xalloc(segments[count].size, ArenaConstraints())
        count += 1
      }
    } catch {
      for i in 0..<count { arena.xfree(segments[i].first, segments[i].size) }
      return false
    }
    while count > Int(live) {
      count -= 1
      let chosen = segments + Int(random.below(UInt64(count + 1)))
      arena.xfree(chosen.pointee.first, chosen.pointee.size)
      chosen.pointee = segments[count]
    }
    return true
  }

  private static func size(_ random: inout SeededRandom) -> ArenaSize {
    ArenaSize((1 + random.below(16)) * Page.size)
  }

  /// Cycles of a free and an allocation, over `count` of them; nil when an allocation was refused.
  package mutating func cyclesOfPair(_ kind: Kind, _ count: UInt64) -> UInt64? {
    var constraints = ArenaConstraints()
    if kind == .aligned { constraints.alignment = Alignment(16 * Page.size).unsafelyUnwrapped }
    let middle = ArenaAddress(extent / 2)
    var cycles: UInt64 = 0
    for _ in 0..<count {
      let segment = segments + Int(random.below(live))
      let size = Self.size(&random)
      let old = segment.pointee
      if kind == .windowed {
        constraints.minimum = old.first < middle ? .lowest : middle
        constraints.maximum = old.first < middle ? middle : .highest
      }
      do throws(VmemError) {
        let start = cp_cycles()
        arena.xfree(old.first, old.size)
        segment.pointee.size = .zero
        let first = try arena.xalloc(size, constraints)
        cycles &+= cp_cycles() &- start
        segment.pointee = Segment(first: first, size: size)
      } catch {
        return nil
      }
    }
    return cycles / count
  }

  /// Frees everything.
  package func release() {
    for i in 0..<Int(live) where segments[i].size != .zero {
      arena.xfree(segments[i].first, segments[i].size)
    }
    arena.destroy()
    memory.physical.free(run)
  }
}
