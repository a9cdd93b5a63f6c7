/* What a shared library shows; the rest is hidden. */
#ifndef PTDEPLOY_EXPORT_H
#define PTDEPLOY_EXPORT_H

#if defined(_WIN32) && defined(PTDEPLOY_SHARED)
#ifdef PTDEPLOY_BUILDING
#define PTDEPLOY_API __declspec(dllexport)
#else
#define PTDEPLOY_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define PTDEPLOY_API __attribute__((visibility("default")))
#else
#define PTDEPLOY_API
#endif

#endif
