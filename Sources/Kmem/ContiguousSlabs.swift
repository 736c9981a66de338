// Contiguous slabs: the source of a cache's slabs is an attribute of the cache.
//
// The slabs of most caches are blocks of the direct map, of 1, 2, 4 or 8 frames. A device that reads objects above a page,
// such as jumbo frames of 9216 bytes, needs more: consecutive frames of a certain range, and cached in a certain way. The
// slabs of such a cache are runs of up to 64 frames. Kmem has no means to empty a run, so the layer of contiguous memory
// registers them here, because it lies above (`SlabRuns`).
//
//   form        The fewest frames of which less than a 32nd is unused, else the number that leaves least: 9 frames hold
//               four objects of 9216 bytes. A machine that has no such run gets slabs of fewer frames, if less than
//               an eighth of them is unused: 5 frames hold two.
//   place       The run satisfies the constraints, so each object does. No slab crosses the boundary. Below a page, where
//               every slab would, the spacing of objects is a power of two, and no object does.
//   attribute   The direct map maps the slab with the attribute, and its objects have addresses there.
//   emptying    A request that may wait has what is in the way moved or written. Another one gets free runs only.
//
// Everything else is as for other slabs. The record of each frame has six bits for its position, so an address leads to
// its slab in two loads. Only the number of an object takes a division, beyond 32 KiB (`locate`).
//
// To make a slab with an attribute, or to release it, all processors must forget a translation. So a request that holds
// a spin lock or has interrupts off gets an object of a slab that exists, or none. A free releases no such slab: trims,
// reclaims and drains do.

import CPlatform
import MemoryPrimitives
import PageTables
import PhysicalMemory

/// Where a cache gets the memory of its slabs.
public struct SlabSource: Sendable {
  let isContiguous: Bool
  let constraints: RunConstraints
  let attribute: CacheAttribute

  /// Any memory, cached as usual. An object above a page lies in consecutive frames where memory has them.
  public static var anyMemory: Self {
    Self(isContiguous: false, constraints: RunConstraints(), attribute: .writeBack)
  }

  /// Runs of consecutive frames that satisfy `constraints`. No object crosses a multiple of their boundary; their
  /// alignment is that of a slab. Each object is mapped with `attribute` at the address that it has.
  public static func contiguous(
    where constraints: RunConstraints = RunConstraints(), attribute: CacheAttribute = .writeBack
  ) -> Self {
    Self(isContiguous: true, constraints: constraints, attribute: attribute)
  }

  /// Computes the bytes from one object to the next, of at least `needed`.
  func spacing(_ needed: Int) -> Int {
    guard let boundary = constraints.boundary, boundary < .page, needed > 1 else { return needed }
    return 1 << (Int.bitWidth - (needed - 1).leadingZeroBitCount)
  }

  /// The most frames of a slab.
  var mostFrames: Int {
    guard let boundary = constraints.boundary, boundary >= .page else { return Slab.mostFrames }
    return Int(min(UInt64(Slab.mostFrames), boundary.rawValue / Page.size))
  }

  /// Bytes of the largest object: those of the largest slab.
  var largestObject: UInt64 {
    isContiguous ? UInt64(Slab.mostFrames) * Page.size : Slab.largestOrder.frames.bytes.rawValue
  }

  /// The same source for a slab whose objects have that alignment.
  func aligned(to alignment: Alignment) -> Self {
    var aligned = constraints
    aligned.alignment = max(aligned.alignment, alignment)
    return Self(isContiguous: isContiguous, constraints: aligned, attribute: attribute)
  }

  /// The constraints of a slab's run.
  var runConstraints: RunConstraints {
    var run = constraints
    if let boundary = run.boundary, boundary < .page { run.boundary = nil }
    return run
  }

  /// Whether making a slab, or releasing it, asks every processor.
  var asksProcessors: Bool { attribute != .writeBack }
}

/// A request for the frames of a slab.
package struct SlabRunRequest {
  /// Frames of the slab.
  package let count: PageCount
  /// Where they may lie.
  package let constraints: RunConstraints
  /// How the direct map is to map them.
  package let attribute: CacheAttribute
  /// How far down the reserve the request may reach.
  package let priority: AllocationPriority
  /// Whether the request may sleep: then what is in the way is moved or written.
  package let mayWait: Bool
  /// The name of the cache, for the log of failures.
  package let requester: ShortName
  /// The owner of the frames.
  package let owner: FrameOwner
}

/// A source of runs for slabs: two C functions and their context. kmem calls them with no lock held.
package struct SlabRuns {
  /// Allocates a run for a `SlabRunRequest`, with the role `slab` and one wire. Answers its first frame, or
  /// `FrameNumber.none`.
  package typealias AllocateRun =
    @convention(c) (_ context: UnsafeMutableRawPointer?, _ request: UnsafeRawPointer) -> UInt32
  /// Frees a run of `allocateRun`, which was mapped with `attribute`.
  package typealias FreeRun =
    @convention(c) (_ context: UnsafeMutableRawPointer?, _ first: UInt32, _ count: UInt32, _ attribute: UInt8)
    -> Void

  let context: UnsafeMutableRawPointer?
  let allocateRun: AllocateRun
  let freeRun: FreeRun

  /// Makes a source of the two functions.
  package init(
    _ context: UnsafeMutableRawPointer?, allocateRun: @escaping AllocateRun, freeRun: @escaping FreeRun
  ) {
    self.context = context
    self.allocateRun = allocateRun
    self.freeRun = freeRun
  }

  func allocate(_ request: SlabRunRequest) -> FrameRun? {
    let first = withUnsafePointer(to: request) { allocateRun(context, UnsafeRawPointer($0)) }
    let frame = FrameNumber(first)
    return frame == .none ? nil : FrameRun(first: frame, count: request.count)
  }

  func free(_ run: FrameRun, _ attribute: CacheAttribute) {
    freeRun(context, run.first.rawValue, UInt32(run.count.rawValue), attribute.rawValue)
  }
}

extension KmemAllocator {
  /// Sets the source of contiguous slabs. Once, before any cache has such slabs.
  package func setSlabRuns(_ runs: SlabRuns) {
    base.assumingMemoryBound(to: KmemState.self).pointee.slabRuns = runs
  }

  /// Whether a cache can have slabs from `source`; `chunk` is the spacing of its objects.
  func canServe(_ source: SlabSource, chunk: Int, _ alignment: Alignment) -> Bool {
    guard source.isContiguous else { return true }
    guard let form = RunForm(chunk: chunk, most: source.mostFrames, isAudited: false),
      state.slabRuns != nil
    else { return false }
    if let boundary = source.constraints.boundary, UInt64(chunk) > boundary.rawValue { return false }
    return state.physical.hasPlace(
      forRun: PageCount(form.fewest), where: source.aligned(to: alignment).runConstraints)
  }
}

/// The frames of the slabs of one cache: as many as it prefers, and the fewest that it makes do with.
struct RunForm {
  let preferred: Int
  let fewest: Int

  /// Nil when no run of up to `most` frames holds an object. A division for each number of frames.
  init?(chunk: Int, most: Int, isAudited: Bool) {
    var (best, least): (Int, Int) = (0, 0)
    var fewest: Int?
    for frames in 1...most {
      let objects = CachePointer.objects(chunk: chunk, frames: frames, isAudited: isAudited)
      guard objects > 0 else { continue }
      let bytes = frames * Int(Page.size)
      let unused = bytes - objects * chunk
      if fewest == nil && unused * 8 <= bytes { fewest = frames }
      if best == 0 || unused * best < least * frames { (best, least) = (frames, unused) }
      if unused * 32 < bytes { break }
    }
    guard best > 0 else { return nil }
    preferred = best
    self.fewest = fewest ?? best
  }
}

extension CachePointer {
  var source: SlabSource { descriptor.source }

  /// Whether this caller may release a slab of the cache. A destructor is the owner's code, which a caller with a lock
  /// held must not run.
  var mayRelease: Bool {
    (descriptor.destruct == nil && !source.asksProcessors) || mayAskProcessors()
  }

  /// Makes a contiguous slab, of the frames that the cache prefers, else of fewer.
  func makeContiguousSlab(isAudited: Bool, priority: AllocationPriority, mayWait: Bool) -> Slab? {
    guard let form = RunForm(chunk: chunk, most: source.mostFrames, isAudited: isAudited),
      !source.asksProcessors || mayAskProcessors()
    else { return nil }
    func slab(_ frames: Int) -> Slab? {
      let request = SlabRunRequest(
        count: PageCount(frames), constraints: source.runConstraints, attribute: source.attribute,
        priority: priority, mayWait: mayWait, requester: name, owner: kmem.owner)
      guard let run = kmem.state.slabRuns?.allocate(request) else { return nil }
      return self.slab(in: run, isAudited: isAudited, priority: priority)
    }
    return slab(form.preferred) ?? (form.fewest < form.preferred ? slab(form.fewest) : nil)
  }

  /// Makes a contiguous slab as soon as a run can be emptied; waits for as many free frames. Nil when `isServed`, when
  /// no run can be emptied though frames enough are free, or as `FrameAllocator.waitForFrames`.
  func makeContiguousSlab(
    isAudited: Bool, waitingFor request: AllocationRequest, unless isServed: () -> Bool
  ) -> Slab? {
    guard let form = RunForm(chunk: chunk, most: source.mostFrames, isAudited: isAudited) else { return nil }
    while !isServed() {
      if let slab = makeContiguousSlab(isAudited: isAudited, priority: request.priority, mayWait: true) {
        return slab
      }
      // Obstacles may have been freed while frames were waited for. The tables of a slab may need one more.
      guard
        physical.waitForFrames(
          PageCount(form.fewest + 1), priority: request.priority, until: request.wait.deadline,
          unless: isServed)
          == .slept
      else { return nil }
    }
    return nil
  }

  /// Frees the frames of a slab.
  func freeFrames(_ run: FrameRun) {
    if source.isContiguous {
      kmem.state.slabRuns.unsafelyUnwrapped.free(run, source.attribute)
    } else {
      physical.free(run.first, BlockOrder.holding(run.count))
    }
  }

  /// Checks KM-10 for the frames of a slab.
  func isPlacedRight(_ run: FrameRun) -> Bool {
    guard source.isContiguous else {
      let frames = run.count.rawValue
      return frames <= Slab.largestOrder.frames.rawValue && frames.nonzeroBitCount == 1
        && UInt64(run.first.rawValue) % frames == 0
    }
    let constraints = source.runConstraints
    let (first, end) = (run.first.address.rawValue, run.first.address.rawValue + run.count.bytes.rawValue)
    if first < constraints.low.rawValue || end > constraints.high.rawValue { return false }
    if first % constraints.alignment.rawValue != 0 { return false }
    guard let boundary = constraints.boundary else { return true }
    return first / boundary.rawValue == (end - 1) / boundary.rawValue
  }
}
